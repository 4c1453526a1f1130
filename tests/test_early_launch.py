"""Launches that may begin early: what reaches the driver, and which launches of a step they are.

That each kernel waits before it touches an array is seen in compiled code, in test_cuda_compile.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from launches import Recorder, ops_on
from test_train import config, dataset

from minivae.ops import cuda_module, cuda_ops
from minivae.training.trainer import Trainer

HERE = Path(__file__).parent
LAUNCH = """
from types import SimpleNamespace as Name
import numpy as np
from minivae.ops import early_launch
array = Name(data=Name(ptr=0xabc))
args = np.int32(-3), np.uint32(2**31), np.float32(0.5), np.float64(0.25), np.uint64(2**63 + 1), array
early_launch.launch(Name(kernel=Name(ptr={function})), Name(ptr=0xdef), (5, 6), (128,), args, shared_mem=1000)
"""


def launched(tmp_path, function):
    """The process that made the launch of LAUNCH with fake_driver.c for a driver."""
    pytest.importorskip("cuda.bindings.driver", reason="early launches need cuda-bindings")
    if not shutil.which("gcc"):
        pytest.skip("the driver's stand-in needs gcc")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", HERE / "fake_driver.c"], check=True)
    return subprocess.run([sys.executable, "-c", LAUNCH.format(function=function)], cwd=HERE.parent, text=True,
                          capture_output=True, env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path)})


@pytest.mark.skipif(sys.platform != "linux", reason="the driver's stand-in is for Linux")
def test_what_the_driver_gets(tmp_path):
    """Attribute 6 of value 1 is programmatic stream serialization, allowed."""
    done = launched(tmp_path, 17)
    assert done.stdout.splitlines() == ["5 6 1 128 1 1 1000 0xdef 0x11", "1 6 1",
                                        "-3 2147483648 0.5 0.25 9223372036854775809 0xabc"], done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the driver's stand-in is for Linux")
def test_what_the_driver_refuses_is_told(tmp_path):
    done = launched(tmp_path, 13)
    assert done.stderr.endswith("RuntimeError: cuLaunchKernelEx: CUDA_ERROR_ILLEGAL_ADDRESS\n")


def recorded(capability=90, **changes):
    """The launches of a step."""
    recorder = Recorder()
    t = Trainer(config(**changes), dataset().train.images, ops_on(recorder, capability), np.float32)
    t.check_each = False  # as on a GPU
    for _ in range(2):
        t.step()
    return recorder.launches


@pytest.mark.parametrize("sigma", ["1", "optimal", "learned", "pixel", "spectrum"])
def test_a_launch_begins_early_behind_one_other(sigma):
    """One that waits for several, or for one of another branch, begins when they have ended: Recorder sees to it."""
    launches = recorded(sigma=sigma)
    assert sum(launch.early for launch in launches) > len(launches) / 2


def test_no_card_before_hopper_launches_early():
    assert not any(launch.early for launch in recorded(capability=89))
    assert any(launch.early for launch in recorded(capability=90))


def test_launches_outside_a_graph_are_not_early():
    recorder = Recorder()
    early = []
    cuda_module.use(np, recorder.module, stream=recorder.stream(), launch_early=lambda *_, **__: early.append(1))
    for _ in range(3):
        cuda_ops.add(np.zeros(4, np.float32), np.zeros(4, np.float32))
    assert not early


def test_a_launch_behind_a_library_s_is_not_early():
    """What NCCL launches is none of ours: it is waited for in full."""
    recorder = Recorder()
    ops = ops_on(recorder)
    total = np.zeros(4, np.float32)

    def step():
        ops.add(total, total)
        ops.add(total, total)
        cuda_module.hand_over_stream()
        ops.add(total, total)

    replay = ops.capture(step)
    replay()
    replay()
    assert [launch.early for launch in recorder.launches] == [False, True, False]
