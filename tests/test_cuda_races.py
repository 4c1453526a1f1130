"""No two blocks of a kernel race for a value, in any order of blocks: python -m pytest -m long.

One run finds what any order would show (see races.h), and the kernels run in one order of lanes.
"""

import numpy as np
import pytest
from emulator import emulator
from test_cuda_mutations import EXERCISES

from minivae.ops import cuda_module

pytestmark = pytest.mark.long

# What is planted in the place of what, in device.h, product.cu and tiles.cu
FAULTS = {
    "no fence for those who read": ("if (last) __threadfence();", ""),
    "the last block but one goes on": ("== blocks - 1;", "== (blocks > 1 ? blocks - 2 : 0);"),
    "one slot for two tiles": ("2 * (first + r) + (r == 0)", "2 * (first + r)"),
    "no fence for those who wrote": ("__threadfence();\n  __syncthreads();", "__syncthreads();"),
    "no wait for the launch ahead": ("wait_for_launch_ahead();  //", "//"),
}


@pytest.fixture(autouse=True)
def detector():
    if emulator.WHY_NOT:
        pytest.skip(emulator.WHY_NOT)
    with emulator.races():
        yield


def run(exercise):
    with pytest.MonkeyPatch.context() as monkeypatch, emulator.lane_order(2):
        cuda_module.use(np, emulator.RawModule)
        for _ in exercise(monkeypatch):
            pass


@pytest.mark.parametrize("exercise", [exercise for _, exercise in EXERCISES])
def test_no_race(exercise):
    run(exercise)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(monkeypatch, fault):
    whole, broken = FAULTS[fault]
    code = cuda_module.Source.code
    assert any(whole in code(source, np.float32) for source, _ in EXERCISES)
    monkeypatch.setattr(cuda_module.Source, "code", lambda *args: code(*args).replace(whole, broken))
    _, products = EXERCISES[0]
    with pytest.raises(emulator.EmulatorError, match="race|atomicAdd|launch_ahead"):
        run(products)
