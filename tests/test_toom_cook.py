"""Convolutions by Toom and Cook: TensorFlow's numbers, the plain convolutions, and the digits that they cost."""

import numpy as np
import pytest
from test_ops import CASES, GEOMETRIES, golden

from minivae.ops import numpy_conv, numpy_ops, numpy_toom_cook
from minivae.ops.geometry import Geometry


def three(module, x, dy, w, g):
    """y, dx and dw of a module, written into arrays whose old contents must not matter."""
    y, dx, dw = (np.full_like(array, np.nan) for array in (dy, x, w))
    cols = module.im2col(x, g, numpy_ops.Buffers())
    module.conv(cols, w, g, y)
    module.conv_dx(dy, w, g, dx)
    module.conv_dw(cols, dy, g, dw)
    return y, dx, dw


def arrays(rng, g, batch, inputs, outputs, dtype=np.float64):
    shapes = ((batch, g.height, g.width, inputs), (batch, g.out_height, g.out_width, outputs),
              (g.kernel, g.kernel, inputs, outputs))
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("case", [c for c in CASES if golden[f"{c}_w"].shape[0] <= 3 * golden[f"{c}_stride"]])
def test_tensorflow_convolutions(case):
    x, w, y, dy, dx, dw, stride = (golden[f"{case}_{name}"] for name in ("x", "w", "y", "dy", "dx", "dw", "stride"))
    transposed = case.startswith("tconv")
    big = y if transposed else x
    g = Geometry(big.shape[1], big.shape[2], w.shape[0], int(stride))
    if transposed:
        dx_found, y_found, dw_found = three(numpy_toom_cook, dy, x, w, g)
    else:
        y_found, dx_found, dw_found = three(numpy_toom_cook, x, dy, w, g)
    for found, expected in ((y_found, y), (dx_found, dx), (dw_found, dw)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("batch, inputs, outputs", [(1, 3, 2), (140, 6, 5), (5, 300, 130)])
@pytest.mark.parametrize("g", [*GEOMETRIES, Geometry(19, 21, 5, 2), Geometry(6, 7, 1, 2)], ids=str)
def test_the_same_as_the_plain_convolutions(rng, g, batch, inputs, outputs):
    """Odd sizes, several tiles in each direction, several pieces of the batch and of the channels."""
    given = arrays(rng, g, batch, inputs, outputs)
    for found, expected in zip(three(numpy_toom_cook, *given, g), three(numpy_conv, *given, g), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_which_layers_use_it():
    assert numpy_toom_cook.suits(Geometry(16, 16, 5, 2), 64)
    assert not numpy_toom_cook.suits(Geometry(32, 32, 5, 2), 3)  # too few channels
    assert not numpy_toom_cook.suits(Geometry(16, 16, 5, 1), 64)  # too many taps for its points
    assert not numpy_toom_cook.suits(Geometry(16, 16, 3, 2), 64)  # too few multiplications saved


def test_the_digits_that_it_costs(rng):
    """Against float64, in float32: the relative error that the module's docstring states."""
    g = Geometry(16, 16, 5, 2)
    exact = arrays(rng, g, 4, 64, 128)
    rounded = [array.astype(np.float32) for array in exact]
    exact = three(numpy_conv, *(array.astype(np.float64) for array in rounded), g)
    for found, expected in zip(three(numpy_toom_cook, *rounded, g), exact, strict=True):
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert error < 1e-6, error
