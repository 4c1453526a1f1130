"""The fast CPU operations against the definition, one by one, where each cuts its work into several unequal pieces."""

import numpy as np
import pytest

from minivae.ops import numpy_conv, numpy_norm, numpy_ops, plain, threads
from minivae.ops.geometry import Geometry

TOOM_COOK = Geometry(16, 13, 5, 2)  # with many channels; more rows than a piece and more columns than a tile
ROWS = [(67, 5), (3, 5, 7, 1), (41, 3, 3, 3), (67, 4, 4, 48), (3, 2, 2, 4096)]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Pieces so small that arrays of tests have several of them, the last of another size."""
    monkeypatch.setattr(numpy_norm, "ROW_ELEMENTS", 16)
    monkeypatch.setattr(numpy_norm, "PIECE_ELEMENTS", 2**8)
    monkeypatch.setattr(numpy_conv, "PIECE_IMAGES", 3)
    monkeypatch.setattr(numpy_ops, "ADAM_ELEMENTS", 100)
    monkeypatch.setattr(numpy_ops, "GAUSSIAN_IMAGES", 3)
    monkeypatch.setattr(numpy_ops, "PRODUCT_MULTIPLICATIONS", 2**9)


@pytest.fixture
def both(rng, monkeypatch):
    """both(name, inputs, outputs, *more): the operation on both modules, its outputs compared; more: settings.

    An output is a shape, whose old contents must not matter, or an array that both start from.
    """
    cuts = []

    def split(count, most):
        cuts.append(threads.split(count, most))
        return cuts[-1]

    for module in (numpy_norm, numpy_conv, numpy_ops):
        monkeypatch.setattr(module, "split", split)

    def both(call, outputs, dtype=np.float64):
        results = []
        for ops in (plain, numpy_ops):
            arrays = [np.full(o, np.nan, dtype) if isinstance(o, tuple) else o.copy() for o in outputs]
            call(ops, *arrays)
            results.append(arrays)
        for expected, found in zip(*results, strict=True):
            scale = np.abs(expected).max()
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * scale)
        return max(len(cut) for cut in cuts) if cuts else 1

    return both


@pytest.mark.parametrize("shape", ROWS)
def test_batch_moments(rng, both, shape):
    x = 3 + rng.standard_normal(shape)
    x[: len(x) // 3] *= 5  # pieces of unequal mean and variance
    pieces = both(lambda ops, moments: ops.batch_moments(x, moments), [(2, shape[-1])])
    assert pieces > 1 or x.size <= 2**8


@pytest.mark.parametrize("shape", ROWS)
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("slope", [0.2, 1])
def test_batch_norm(rng, both, shape, train, slope):
    c = shape[-1]
    x = rng.standard_normal(shape)
    dy = rng.standard_normal(shape)
    moments = np.stack([rng.standard_normal(c), rng.uniform(0.5, 2, c)])
    gamma, beta = rng.standard_normal((2, c))
    moving = rng.standard_normal((2, c))
    both(lambda ops, y, moving: ops.batch_norm(x, moments, gamma, beta, slope, y, moving, 0.9), [shape, moving])

    def backward(ops, dx, dgamma, dbeta):
        ops.batch_norm_dx(dy, x, moments, gamma, beta, slope, train, dx, dgamma, dbeta)

    both(backward, [shape, (c,), (c,)])


@pytest.mark.parametrize("g, inputs, outputs", [(Geometry(7, 5, 3, 2), 3, 4), (Geometry(9, 6, 5, 3), 2, 5),
                                                (TOOM_COOK, 34, 3)], ids=str)
@pytest.mark.parametrize("batch", [1, 31, 131])
def test_convolutions(rng, both, g, inputs, outputs, batch):
    """31 images are more pieces than conv_dw has partial sums; 131 are three pieces of the Toom-Cook form."""
    x = rng.standard_normal((batch, g.height, g.width, inputs))
    dy = rng.standard_normal((batch, g.out_height, g.out_width, outputs))
    w = rng.standard_normal((g.kernel, g.kernel, inputs, outputs))

    def conv(ops, y, moments):
        ops.conv(ops.im2col(x, g, ops.Buffers()), w, g, y, moments)

    pieces = both(conv, [dy.shape, (2, outputs)])
    assert pieces > 1 or batch == 1
    both(lambda ops, dx, moments: ops.conv_dx(dy, w, g, dx, moments), [x.shape, (2, inputs)])
    both(lambda ops, dw: ops.conv_dw(ops.im2col(x, g, ops.Buffers()), dy, g, dw), [w.shape])


@pytest.mark.parametrize("n, inputs, outputs", [(67, 30, 7), (3, 40, 200), (1, 1, 1)])
def test_dense(rng, both, n, inputs, outputs):
    x = rng.standard_normal((n, inputs))
    w = rng.standard_normal((inputs, outputs))
    dy = rng.standard_normal((n, outputs))
    pieces = both(lambda ops, y, moments: ops.dense(x, w, y, moments), [dy.shape, (2, outputs)])
    assert pieces > 1 or n == 1
    both(lambda ops, dx: ops.dense_dx(dy, w, dx), [x.shape])
    both(lambda ops, dw: ops.dense_dw(x, dy, dw), [w.shape])


@pytest.mark.parametrize("sigma", [1, 0.3])
def test_tanh_gaussian(rng, both, sigma):
    shape = (31, 4, 3, 3)
    a = rng.standard_normal(shape)
    x = rng.uniform(-1, 1, shape)
    b = rng.standard_normal(3)
    log_sigma = np.array([np.log(sigma)])
    pieces = both(lambda ops, *out: ops.tanh_gaussian(a, b, x, log_sigma, 0.1, *out), [shape, (31,), shape, (3,)])
    assert pieces > 1


@pytest.mark.parametrize("n, size", [(31, 50), (2, 7)])
def test_spectrum(rng, both, n, size):
    f, log_scale, b = *rng.standard_normal((2, n, size)), rng.standard_normal(size)
    outputs = [(n,), f.shape, f.shape, (size,)]
    pieces = [both(lambda ops, *out: ops.student(f, log_scale, b, 8, 0.1, *out), outputs)]
    pieces.append(both(lambda ops, da, db: ops.bias_tanh_dx(f, np.tanh(log_scale), da, db), [f.shape, (size,)]))
    x, r, c = rng.standard_normal((n, 4, size)), rng.standard_normal((4, 4)), rng.standard_normal((size, size))
    pieces.append(both(lambda ops, y: ops.mix_rows(r, x, y), [x.shape]))
    both(lambda ops, y: ops.mix_columns(x, c, y), [x.shape])
    assert min(pieces) > 1 or n == 2


def test_adam(rng, both):
    values, grads, m = rng.standard_normal((3, 1003))
    v = rng.uniform(0, 1, 1003)

    def adam(ops, values, m, v):
        ops.adam(values, grads, m, v, np.array([1e-3]), 0.5, 0.999, 1e-8)

    assert both(adam, [values, m, v]) > 1


def test_both_modules_hold_the_whole_contract():
    """What plain has, numpy_ops has under the same name; nothing else of it is public but what it needs itself."""
    public = {name for name, value in vars(plain).items() if callable(value) and not name.startswith("_")}
    assert public - {"col2im", "own_sums"} <= set(vars(numpy_ops))
