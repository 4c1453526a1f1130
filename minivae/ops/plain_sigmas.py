"""The definition of the operations that a fitted sigma needs beside the reference's: the second half of plain.py.

rec (N,) = -ln p(x|z) - (D/2) ln 2 pi, nats per image. Each operation is written without the others, and each forward
finds the gradient of scale sum_n rec_n as well. docs/gradients.md derives them.
"""

import numpy as np

from minivae.ops import SIGMA_FLOOR


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
