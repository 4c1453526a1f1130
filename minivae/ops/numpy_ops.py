"""The operations made fast on a CPU; plain.py and plain_sigmas.py say what each of them computes.

Convolutions (numpy_conv, and numpy_toom_cook for many channels) and batch norm (numpy_norm) have files of their own.
Where the definition is fast enough, it is used as it is.
"""

import math

import numpy as np

from minivae.ops import numpy_conv, numpy_toom_cook
from minivae.ops.host import *  # noqa: F403
from minivae.ops.numpy_norm import batch_moments, batch_norm, batch_norm_dx, channel_sum  # noqa: F401
from minivae.ops.plain import (  # noqa: F401
    adam_rate,
    add,
    append_label,
    append_label_dx,
    bias_tanh,
    gather,
    latent,
    latent_dx,
    moving_average,
    normal,
    record,
    take_labels,
)
from minivae.ops.plain_sigmas import (  # noqa: F401
    dequantize,
    fit_sigma,
    log_energy,
    log_energy_dx,
    log_sigma_dx,
    subtract,
    tanh_gaussian_pixel,
)
from minivae.ops.threads import parallel, scratch, split

xp = np

ADAM_ELEMENTS = 2**18  # of one thread's piece: those of all five arrays fit in the caches of a core
GAUSSIAN_IMAGES = 16  # of one thread's piece of the likelihood
PRODUCT_MULTIPLICATIONS = 2**24  # of one thread's piece of a dense product


def im2col(x, g, buffers):
    """The windows of x (N, H, W, I) in the form that conv and conv_dw multiply; `buffers` owns their memory."""
    return _convolutions(g, x.shape[3]).im2col(x, g, buffers)


def conv(cols, w, g, y, moments=None):
    _convolutions(g, w.shape[2]).conv(cols, w, g, y)
    if moments is not None:
        batch_moments(y, moments)


def conv_dx(dy, w, g, dx, moments=None):
    _convolutions(g, w.shape[2]).conv_dx(dy, w, g, dx)
    if moments is not None:
        batch_moments(dx, moments)


def conv_dw(cols, dy, g, dw):
    _convolutions(g, dw.shape[2]).conv_dw(cols, dy, g, dw)


def _convolutions(g, channels):
    return numpy_toom_cook if numpy_toom_cook.suits(g, channels) else numpy_conv


def dense(x, w, y, moments=None):
    _product(x, w, y)
    if moments is not None:
        batch_moments(y, moments)


def dense_dx(dy, w, dx):
    _product(dy, w.T, dx)


def dense_dw(x, dy, dw):
    _product(x.T, dy, dw)


def _product(a, b, out):
    """out = a @ b, on all cores along its longer side."""

    def some_columns(part):
        np.matmul(a, b[:, part], out=out[:, part])

    def some_rows(part):
        np.matmul(a[part], b, out=out[part])

    if len(a) < b.shape[1]:
        parallel(some_columns, split(b.shape[1], PRODUCT_MULTIPLICATIONS // a.size))
    else:
        parallel(some_rows, split(len(a), PRODUCT_MULTIPLICATIONS // b.size))


def tanh_gaussian(a, b, x, log_sigma, scale, x_hat, rec, da, db):
    precision = np.exp(-2 * log_sigma[0])  # exactly 1 for sigma = 1

    def work(images):
        bias_tanh(a[images], b, x_hat[images])
        error = np.subtract(x_hat[images], x[images], out=da[images])
        flat = error.reshape(len(error), -1)
        np.einsum("ni,ni->n", flat, flat, out=rec[images])
        slope = np.square(x_hat[images], out=scratch("slope", error.shape, x_hat.dtype))
        np.subtract(1, slope, out=slope)
        error *= slope
        error *= scale * precision

    parallel(work, split(len(a), GAUSSIAN_IMAGES))
    rec *= 0.5 * precision
    rec += x[0].size * log_sigma[0]
    db[...] = channel_sum(da)


def bias_tanh_dx(dy, y, da, db):
    def work(rows):
        slope = np.square(y[rows], out=scratch("slope", y[rows].shape, y.dtype))
        np.subtract(1, slope, out=slope)
        np.multiply(dy[rows], slope, out=da[rows])

    parallel(work, split(len(y), GAUSSIAN_IMAGES))
    db[...] = channel_sum(da)


def mix_columns(x, c, y):
    _product(x.reshape(-1, len(c)), c, y.reshape(-1, len(c)))


def mix_rows(r, x, y):
    def work(images):
        np.matmul(r, x[images], out=y[images])

    parallel(work, split(len(x), GAUSSIAN_IMAGES))


def student(f, log_scale, b, nu, scale, rec, df, dlog_scale, db):
    size = f.shape[1]
    constant = math.lgamma(nu / 2) - math.lgamma((nu + size) / 2) + size / 2 * math.log(nu / 2)

    def work(images):
        precision = np.add(log_scale[images], b, out=scratch("precision", f[images].shape, f.dtype))
        rec[images] = precision.sum(1) + constant
        precision *= -2
        np.exp(precision, out=precision)
        np.multiply(f[images], precision, out=df[images])
        ratio = np.multiply(f[images], df[images], out=dlog_scale[images])
        d = ratio.sum(1)
        rec[images] += (nu + size) / 2 * np.log1p(d / nu)
        weight = (scale * (nu + size) / (nu + d))[:, None]
        df[images] *= weight
        ratio *= weight
        np.subtract(scale, ratio, out=ratio)

    parallel(work, split(len(f), GAUSSIAN_IMAGES))
    db[...] = channel_sum(dlog_scale)


def adam(values, grads, m, v, rate, beta1, beta2, eps):
    def work(piece):
        g = grads[piece]
        mi = m[piece]
        vi = v[piece]
        d = scratch("adam", g.shape, g.dtype)
        mi *= beta1
        mi += np.multiply(g, 1 - beta1, out=d)
        vi *= beta2
        vi += np.multiply(np.square(g, out=d), 1 - beta2, out=d)
        np.add(np.sqrt(vi, out=d), eps, out=d)
        np.divide(mi, d, out=d)
        d *= rate
        values[piece] -= d

    parallel(work, split(values.size, ADAM_ELEMENTS))
