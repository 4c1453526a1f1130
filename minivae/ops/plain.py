"""The definition of every operation: plain NumPy, as one would write it on paper, each backward below its forward.

Everything else is held to this file: numpy_ops and the CUDA kernels operation by operation, and this file itself by
finite differences (python run.py gradcheck). docs/gradients.md derives each; ops/__init__.py has the shapes' letters.
What only a fitted sigma needs is in plain_sigmas.py.
"""

import numpy as np

from minivae.ops import BN_EPS, HALF_RANGE, VAR_FLOOR, own_sums, philox
from minivae.ops.host import *  # noqa: F403
from minivae.ops.plain_sigmas import *  # noqa: F403

xp = np


# Dense layers. A forward that is given `moments` also finds its output's, for the batch norm that follows.
def dense(x, w, y, moments=None):
    """y (N, O) = x (N, I) w (I, O)."""
    y[...] = x @ w
    if moments is not None:
        batch_moments(y, moments)


def dense_dx(dy, w, dx):
    dx[...] = dy @ w.T


def dense_dw(x, dy, dw):
    dw[...] = x.T @ dy


# Convolutions: im2col turns each into a product, and col2im is im2col's adjoint. A transposed convolution is conv_dx.
def im2col(x, g, buffers=None):
    """cols (N, h, w, k, k, I): the window of x (N, H, W, I) that each small pixel sees, zeros outside the image."""
    padded = np.zeros((len(x), *g.padded, x.shape[3]), x.dtype)
    padded[:, g.top : g.top + g.height, g.left : g.left + g.width] = x
    cols = np.empty((len(x), g.out_height, g.out_width, g.kernel, g.kernel, x.shape[3]), x.dtype)
    for a in range(g.kernel):
        for b in range(g.kernel):
            cols[:, :, :, a, b] = _seen_through(padded, g, a, b)
    return cols


def col2im(cols, g, dx):
    """dx (N, H, W, I): every value of cols is added to the pixel from which im2col reads it."""
    padded = np.zeros((len(dx), *g.padded, dx.shape[3]), dx.dtype)
    for a in range(g.kernel):
        for b in range(g.kernel):
            _seen_through(padded, g, a, b)[...] += cols[:, :, :, a, b]
    dx[...] = padded[:, g.top : g.top + g.height, g.left : g.left + g.width]


def _seen_through(padded, g, a, b):
    """The pixels (N, h, w, I) of a padded image that the small pixels see through tap (a, b) of the kernel."""
    rows = slice(a, a + g.stride * g.out_height, g.stride)
    columns = slice(b, b + g.stride * g.out_width, g.stride)
    return padded[:, rows, columns]


def conv(cols, w, g, y, moments=None):
    """y (N, h, w, O) = im2col(x) w, summed over tap and channel; w (k, k, I, O)."""
    y[...] = np.tensordot(cols, w, axes=3)
    if moments is not None:
        batch_moments(y, moments)


def conv_dx(dy, w, g, dx, moments=None):
    """dx (N, H, W, I) = col2im(dy w^T): the adjoint of conv in x, and the forward of a transposed convolution."""
    col2im(np.tensordot(dy, w, axes=(3, 3)), g, dx)
    if moments is not None:
        batch_moments(dx, moments)


def conv_dw(cols, dy, g, dw):
    dw[...] = np.tensordot(cols, dy, axes=((0, 1, 2), (0, 1, 2)))


# Batch norm and leaky ReLU, leaky(u) = max(u, slope u); slope 1 for none. x (..., C), moments (2, C): mean, variance.
def batch_moments(x, moments):
    rows = x.reshape(-1, x.shape[-1])
    moments[0] = rows.mean(0)
    moments[1] = rows.var(0)  # biased: divided by the number of rows


def moving_average(moving, moments, decay):
    moving[...] = decay * moving + (1 - decay) * moments


def batch_norm(x, moments, gamma, beta, slope, y, moving=None, decay=1):
    mean, var = moments
    u = gamma * (x - mean) / np.sqrt(var + BN_EPS) + beta
    y[...] = np.maximum(u, slope * u)
    if moving is not None:
        moving_average(moving, moments, decay)


def batch_norm_dx(dy, x, moments, gamma, beta, slope, train, dx, dgamma, dbeta, whole=own_sums):
    """With train, moments are those of x itself and depend on it; docs/batch_norm.md derives it. dx may be dy."""
    mean, var = moments
    rstd = 1 / np.sqrt(var + BN_EPS)
    n = (x - mean) * rstd
    g = dy * np.where(gamma * n + beta < 0, slope, 1)
    dgamma[...] = (g * n).reshape(-1, len(gamma)).sum(0)
    dbeta[...] = g.reshape(-1, len(beta)).sum(0)
    if train:
        by_gamma, by_beta, rows = whole(dgamma, dbeta, x.size // len(gamma))
        g = g - by_beta / rows - n * by_gamma / rows
    dx[...] = gamma * rstd * g


# The latent code: q(z|x) = N(mean, var), sampled; mean, s, eps, z, var (N, Z), kl (N,) in nats per image
def latent(mean, s, eps, analytic, z, var, kl):
    """kl: ln q(z|x) - ln p(z) at the sampled z, or its expectation KL(q || p) if analytic; docs/elbo.md derives it."""
    var[...] = np.logaddexp(s, 0) + VAR_FLOOR  # softplus
    z[...] = mean + np.sqrt(var) * eps
    terms = mean**2 + var - 1 - np.log(var) if analytic else z**2 - eps**2 - np.log(var)
    kl[...] = terms.sum(1) / 2


def latent_dx(dz, mean, s, eps, analytic, scale, z, var, dmean, ds):
    """The gradients of L(z) + scale sum_n kl_n, for dz = dL/dz."""
    dmean[...] = dz + scale * (mean if analytic else z)
    through_z = dz if analytic else dmean
    dvar = through_z * eps / (2 * np.sqrt(var)) - scale / (2 * var) + (scale / 2 if analytic else 0)
    ds[...] = dvar * np.exp(-np.logaddexp(0, -s))  # the sigmoid, softplus' derivative


def append_label(z, labels, zy):
    zy[...] = np.concatenate([z, np.eye(zy.shape[1] - z.shape[1])[labels]], axis=1)


def append_label_dx(dzy, dz):
    dz[...] = dzy[:, : dz.shape[1]]


# The image: x_hat = tanh(a + b) and p(x|z) = N(x_hat, sigma^2). rec (N,) = -ln p(x|z) - (D/2) ln 2 pi, nats per image.
# The forward finds the gradient of scale sum_n rec_n as well, while x_hat and x are at hand.
def bias_tanh(a, b, x_hat):
    x_hat[...] = np.tanh(a + b)


def tanh_gaussian(a, b, x, log_sigma, scale, x_hat, rec, da, db):
    """a, x, x_hat, da (N, H, W, C)   b, db (C,)   log_sigma (1,)   rec = ||x - x_hat||^2 / (2 sigma^2) + D ln sigma"""
    bias_tanh(a, b, x_hat)
    error = x_hat - x
    precision = np.exp(-2 * log_sigma[0])
    rec[...] = precision / 2 * (error**2).sum((1, 2, 3)) + x[0].size * log_sigma[0]
    da[...] = scale * precision * error * (1 - x_hat**2)
    db[...] = da.sum((0, 1, 2))


# A step's ends. t (1,) int64 counts finished steps; S is the number of steps in a window, table (S, N) its labels.
def normal(seed, stream, t, out):
    """out = standard normals of the Philox stream (seed, stream) at step t."""
    out[...] = philox.normals(seed, stream, t[0], out.size).reshape(out.shape)


def gather(images, index, t, x):
    """x (N, H, W, C) in [-1, 1] of images (..., H, W, C) uint8; index (S, N) lists each step's images."""
    x[...] = images[index[t[0] % len(index)]] / x.dtype.type(HALF_RANGE) - 1


def take_labels(table, t, labels):
    labels[...] = table[t[0] % len(table)]


def add(total, term):
    """The gradient of a value that is used twice is the sum of two."""
    total += term


def adam_rate(lr, t, beta1, beta2, rate):
    """rate (1,) of the step that t counts next; lr (1,) float64."""
    rate[0] = lr[0] * np.sqrt(1 - beta2 ** (t[0] + 1)) / (1 - beta1 ** (t[0] + 1))


def adam(values, grads, m, v, rate, beta1, beta2, eps):
    """Adam with TensorFlow's eps, on flat arrays; rate (1,)."""
    m[...] = beta1 * m + (1 - beta1) * grads
    v[...] = beta2 * v + (1 - beta2) * grads**2
    values -= float(rate[0]) * m / (np.sqrt(v) + eps)


def record(rec, kl, t, history):
    """Keep the batch's mean losses in history (S, 2) float64; the step is over."""
    history[t[0] % len(history)] = rec.mean(), kl.mean()
    t += 1
