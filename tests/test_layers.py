"""Every layer: shapes, and its gradients against finite differences in float64 with a random dy."""

import numpy as np
import pytest

from minivae.layers import (
    BatchNorm,
    Conv2D,
    Conv2DTranspose,
    Dense,
    conv_block,
    conv_transpose_block,
    dense_block,
)
from minivae.ops.geometry import Geometry
from minivae.parameters import Parameters


def build(ops, make):
    params = Parameters(ops, np.float64)
    layer = make(params)
    params.allocate()
    return params, layer


def check_layer(check, params, layer, x, rng, **options):
    y = layer.forward(x, **options)
    dy = rng.standard_normal(y.shape)

    def f():
        return np.vdot(layer.forward(x, **options), dy)

    f()
    dx = layer.backward(dy.copy())
    check(f, {"x": (x, dx)} | {p.name: (p.value, p.grad.copy()) for p in params.trained})


SIZES = [(3, 8, 8), (2, 7, 5), (5, 1, 3)]


@pytest.mark.parametrize("inputs, outputs", [(7, 3), (1, 1), (3, 40)])
def test_dense(ops, rng, check, inputs, outputs):
    params, layer = build(ops, lambda p: Dense(p, "d", inputs, outputs))
    check_layer(check, params, layer, rng.standard_normal((5, inputs)), rng)


@pytest.mark.parametrize("n, height, width", SIZES)
@pytest.mark.parametrize("kernel, stride", [(3, 2), (5, 2), (3, 1)])
def test_conv2d(ops, rng, check, n, height, width, kernel, stride):
    params, layer = build(ops, lambda p: Conv2D(p, "c", Geometry(height, width, kernel, stride), 3, 4))
    check_layer(check, params, layer, rng.standard_normal((n, height, width, 3)), rng)


@pytest.mark.parametrize("n, height, width", SIZES)
@pytest.mark.parametrize("channels", [3, 20])
def test_conv2d_transpose(ops, rng, check, n, height, width, channels):
    g = Geometry(height, width, 5, 2)
    params, layer = build(ops, lambda p: Conv2DTranspose(p, "t", g, 4, channels))
    x = rng.standard_normal((n, g.out_height, g.out_width, 4))
    assert layer.forward(x).shape == (n, height, width, channels)
    check_layer(check, params, layer, x, rng)


def test_conv2d_without_dx(ops, rng):
    _, layer = build(ops, lambda p: Conv2D(p, "c", Geometry(4, 4, 3, 2), 3, 4))
    y = layer.forward(rng.standard_normal((2, 4, 4, 3)))
    assert layer.backward(np.ones_like(y), want_dx=False) is None
    assert layer.w.grad.any()


@pytest.mark.parametrize("make, shape", [
    (lambda p: dense_block(p, "b", 6, 5), (7, 6)),
    (lambda p: dense_block(p, "b", 6, 5, slope=1), (7, 6)),
    (lambda p: conv_block(p, "b", (7, 6), 3, 4), (3, 7, 6, 3)),
    (lambda p: conv_transpose_block(p, "b", (8, 10), 4, 3), (3, 4, 5, 4)),
], ids=["dense", "linear", "conv", "conv_transpose"])
@pytest.mark.parametrize("train", [True, False])
def test_blocks(ops, rng, check, make, shape, train):
    params, block = build(ops, make)
    for p in params.trained[1:]:  # gamma and beta off 1 and 0
        p.value += rng.standard_normal(p.shape)
    params.state[0].value[...] = rng.uniform(0.5, 2, params.state[0].shape)
    check_layer(check, params, block, rng.standard_normal(shape), rng, train=train)


def test_a_bias_before_batch_norm_would_have_no_gradient(ops, rng):
    _, block = build(ops, lambda p: dense_block(p, "b", 6, 5))
    y = block.forward(rng.standard_normal((7, 6)), train=True)
    bias_gradient = block.norm.backward(rng.standard_normal(y.shape)).sum(0)
    np.testing.assert_allclose(bias_gradient, 0, atol=1e-12)


def test_batch_norm_modes(ops, rng):
    """Training normalizes by the batch and moves the statistics; testing uses them and leaves them alone."""
    _, norm = build(ops, lambda p: BatchNorm(p, "n", 3))
    x = 5 + 2 * rng.standard_normal((400, 3))
    y = norm.forward(x, train=True)  # it finds the batch's moments, since nobody gives them
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(y.var(0), x.var(0) / (x.var(0) + 1e-3), rtol=1e-12)
    moved = norm.moving.value.copy()
    np.testing.assert_allclose(moved, [0.01 * x.mean(0), 0.99 + 0.01 * x.var(0)], rtol=1e-12)
    y = norm.forward(x, train=False)
    np.testing.assert_allclose(y, (x - moved[0]) / np.sqrt(moved[1] + 1e-3), rtol=1e-12)
    np.testing.assert_array_equal(norm.moving.value, moved)


def test_batch_norm_takes_the_moments_that_it_is_given(ops, rng):
    _, norm = build(ops, lambda p: BatchNorm(p, "n", 3))
    x = rng.standard_normal((5, 3))
    y = norm.forward(x, train=True, moments=np.array([[1.0, 2, 3], [4, 5, 6]]))
    np.testing.assert_allclose(y, (x - [1, 2, 3]) / np.sqrt(np.array([4, 5, 6]) + 1e-3), rtol=1e-12)


@pytest.mark.parametrize("make, shape", [
    (lambda p: dense_block(p, "b", 6, 5), (7, 6)),
    (lambda p: conv_block(p, "b", (7, 6), 3, 4), (3, 7, 6, 3)),
    (lambda p: conv_transpose_block(p, "b", (8, 10), 4, 3), (3, 4, 5, 4)),
], ids=["dense", "conv", "conv_transpose"])
def test_without_dw_no_gradient_of_a_parameter_changes(ops, rng, make, shape):
    params, block = build(ops, make)
    y = block.forward(rng.standard_normal(shape), train=True)
    dy = rng.standard_normal(y.shape)
    dx = block.backward(dy.copy()).copy()
    params.grads[...] = 7
    np.testing.assert_array_equal(block.backward(dy.copy(), want_dw=False), dx)
    assert (params.grads == 7).all()


def test_views_are_aligned_and_cover_the_buffers(ops):
    params, _ = build(ops, lambda p: [dense_block(p, "a", 3, 5), dense_block(p, "b", 5, 7)])
    for p in params.trained:
        for flat, view in ((params.values, p.value), (params.grads, p.grad)):
            assert np.shares_memory(flat, view)
            assert (view.ctypes.data - flat.ctypes.data) % 16 == 0
    params.values[...] = 3
    assert all((p.value == 3).all() for p in params.trained)


@pytest.mark.parametrize("make, fan, shape", [
    (lambda p: Dense(p, "d", 200, 300), 200, (200, 300)),
    (lambda p: Conv2D(p, "c", Geometry(8, 8, 3, 2), 60, 100), 540, (3, 3, 60, 100)),
    (lambda p: Conv2DTranspose(p, "t", Geometry(8, 8, 5, 2), 60, 40), 1000, (5, 5, 40, 60)),
], ids=["dense", "conv", "conv_transpose"])
def test_initial_weights(ops, make, fan, shape):
    """sd sqrt(2.6 / n) before the cut; a transposed convolution's n counts its outputs, as the reference's does."""
    _, layer = build(ops, make)
    assert layer.w.value.shape == shape
    assert layer.w.value.std() == pytest.approx(0.8796 * np.sqrt(2.6 / fan), rel=0.02)
    assert np.abs(layer.w.value).max() <= 2 * np.sqrt(2.6 / fan)
