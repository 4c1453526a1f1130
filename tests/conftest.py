from pathlib import Path

import numpy as np
import pytest

from minivae import gradcheck
from minivae.ops import numpy_ops

GOLDEN = Path(__file__).parent / "golden"


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


@pytest.fixture(scope="session")
def ops():
    return numpy_ops
