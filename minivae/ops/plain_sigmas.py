"""The definition of the operations that a fitted sigma needs beside the reference's: the second half of plain.py.

rec (N,) = -ln p(x|z) - (D/2) ln 2 pi, nats per image. Each operation is written without the others, and those that
find rec find the gradient of scale sum_n rec_n as well. docs/gradients.md derives them.
"""

import math

import numpy as np

from minivae.ops import HALF_RANGE, PIXEL_VAR, SIGMA_FLOOR, philox


def log_sigma_dx(rec, log_sigma, size, scale, dlog_sigma):
    """dlog_sigma (1,) = scale sum_n (D - ||x - x_hat||^2 / sigma^2); rec at log_sigma gives the squared error back."""
    dlog_sigma[0] = scale * (size - 2 * (rec - size * log_sigma[0])).sum()


def fit_sigma(rec, size, log_sigma):
    """The log_sigma (1,) that minimizes the mean of rec, which was found with sigma = 1; size = D."""
    log_sigma[0] = np.log(max(2 * rec.mean() / size, SIGMA_FLOOR**2)) / 2


def tanh_gaussian_pixel(a, b, x, scale, x_hat, rec, da, db):
    """A variance for each value: a, da (N, H, W, 2C) and b, db (2C,) hold the means' head, then the variances'."""
    c = x.shape[-1]
    x_hat[...] = np.tanh(a[..., :c] + b[:c])
    t = a[..., c:] + b[c:]
    var = np.logaddexp(t, 0) + t.dtype.type(SIGMA_FLOOR**2)
    error = x_hat - x
    ratio = error**2 / var
    rec[...] = (ratio + np.log(var)).sum((1, 2, 3)) / 2
    da[..., :c] = error * (1 - x_hat**2) / var * scale
    da[..., c:] = (1 - ratio) / (2 * var) * np.exp(-np.logaddexp(0, -t)) * scale
    db[...] = da.sum((0, 1, 2))


# A spectrum that follows z: Student-t noise on the coefficients f = F (x_hat - x) of an orthonormal transform F.
def subtract(x_hat, x, error):
    error[...] = x_hat - x


def bias_tanh_dx(dy, y, da, db):
    """For y = tanh(a + b): dy, y, da (..., C)   db (C,)."""
    da[...] = dy * (1 - y**2)
    db[...] = da.reshape(-1, len(db)).sum(0)


def mix_columns(x, c, y):
    """y (N, H, K) = x (N, H, K) c (K, K), to the last digit of the dtype; its adjoint is itself with c^T."""
    y[...] = x @ c


def mix_rows(r, x, y):
    """y (N, H, K) = r (H, H) x[n] (H, K) for each image; its adjoint is itself with r^T."""
    y[...] = r @ x


def student(f, log_scale, b, nu, scale, rec, df, dlog_scale, db):
    """f, log_scale, df, dlog_scale (N, D)   b, db (D,)   rec = (nu + D)/2 ln(1 + d/nu) + sum (log_scale + b) + constant

    d = sum f^2 / e^(2 (log_scale + b)); the constant is what is left of ln p(f) less (D/2) ln 2 pi.
    """
    size = f.shape[1]
    precision = np.exp(-2 * (log_scale + b))
    ratio = f**2 * precision
    d = ratio.sum(1)
    constant = math.lgamma(nu / 2) - math.lgamma((nu + size) / 2) + size / 2 * math.log(nu / 2)
    rec[...] = (nu + size) / 2 * np.log1p(d / nu) + (log_scale + b).sum(1) + constant
    weight = ((nu + size) / (nu + d))[:, None]
    df[...] = scale * weight * f * precision
    dlog_scale[...] = scale * (1 - weight * ratio)
    db[...] = dlog_scale.sum(0)


def log_energy(f, pool, energy):
    """energy (N, B) = ln (f^2 pool^T + floor): f (N, D), pool (B, D) averages over the coefficients of each band."""
    energy[...] = np.log(f**2 @ pool.T + PIXEL_VAR)


def log_energy_dx(denergy, f, pool, energy, df):
    df[...] = 2 * f * ((denergy / np.exp(energy)) @ pool)


def dequantize(seed, stream, t, x, first=0):
    """Add to x, in [-1, 1] from grey levels, uniform noise of one level's width: that of (seed, stream) at step t.

    first: where the noise of x begins, if x is a part of an array.
    """
    noise = philox.uniforms(seed, stream, t[0], x.size, first).reshape(x.shape) - 0.5
    x += noise / HALF_RANGE
