import contextlib
import signal
from pathlib import Path

import numpy as np
import pytest
from emulator import emulator

from minivae import checks, gradcheck
from minivae.errors import UserError
from minivae.ops import cuda_module, numpy_ops, plain
from minivae.vae import Widths

GOLDEN = Path(__file__).parent / "golden"
FIRST = ["test_philox", "test_ops", "test_gaussian", "test_sigma", "test_layers", "test_vae", "test_fast_ops",
         "test_toom_cook"]
ON_BOTH = {"test_ops", "test_gaussian", "test_sigma", "test_layers", "test_vae"}  # run on plain too, which comes first


def pytest_configure():
    """Started by nohup, or in the background of a script, the tests and their processes would ignore these signals."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_generate_tests(metafunc):
    if "ops" in metafunc.fixturenames and metafunc.module.__name__ in ON_BOTH:
        metafunc.parametrize("ops", [plain, numpy_ops], ids=["plain", "numpy"])


def pytest_collection_modifyitems(items):
    """What all else is built on is tested first: with -x a wrong gradient is blamed before what uses it."""
    rank = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(FIRST)) + 0.5 * ("[numpy" in item.name))


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def check(rng):
    """check(f, {name: (array, gradient of f in it)}): each along a random direction; a failure names its elements."""

    def check(f, gradients):
        for name, (array, grad) in gradients.items():
            analytic, numeric, error = gradcheck.directional(f, array, grad, rng)
            assert error < gradcheck.TOLERANCE, (
                f"{name}: {analytic} is not {numeric}; worst elements {gradcheck.elements(f, array, grad, rng)}")

    return check


@pytest.fixture
def few_checks(monkeypatch):
    """few_checks(*cases): run checks these small cases, a tiny model in place of the reference's, and odd sizes."""

    def few_checks(*cases):
        tiny = checks.REFERENCE._replace(shape=(8, 8, 1), widths=checks.SMALL)
        monkeypatch.setattr(checks, "REFERENCE", tiny)
        monkeypatch.setattr(checks, "MANY_PIECES", tiny._replace(batch=40, widths=Widths((4, 5, 6), 7, (8, 33, 5))))
        monkeypatch.setattr(checks, "SMALL_CASES", list(cases))

    return few_checks


@pytest.fixture(scope="session")
def ops():
    return numpy_ops


@pytest.fixture(params=emulator.ORDERS, ids=lambda order: f"order{order}")
def cuda(request):
    """CUDA kernels run on the emulator, on NumPy arrays, in each order of lanes."""
    with on_emulator(request.param):
        yield


@pytest.fixture(params=[*emulator.ORDERS, pytest.param("gpu", marks=pytest.mark.gpu)],
                ids=lambda p: p if p == "gpu" else f"order{p}")
def to_device(request):
    """to_device(array): a copy where kernels run, the emulator as `cuda` has it or, with -m gpu, the GPU."""
    if request.param != "gpu":
        with on_emulator(request.param):
            yield emulator.guarded
        return
    try:
        cuda_module.require_gpu()
    except UserError as e:
        pytest.skip(str(e))
    yield cuda_module.xp.asarray


@contextlib.contextmanager
def on_emulator(order):
    if emulator.WHY_NOT:
        pytest.skip(emulator.WHY_NOT)
    cuda_module.use(np, emulator.RawModule)
    with emulator.lane_order(order):
        yield
