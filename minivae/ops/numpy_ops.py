"""The operations in NumPy: the definition of each, and fast.

N images, (H, W) the big side of a Geometry, (h, w) its small side, I channels on the big side, O on the small side,
M = N h w rows where only channels matter. Weights are (k, k, I, O) for conv and transposed conv alike. Two subjects
have files of their own: convolutions (numpy_conv, and numpy_toom_cook for many channels) and batch norm (numpy_norm).
"""

import numpy as np

from minivae.ops import numpy_conv, numpy_toom_cook, philox
from minivae.ops.numpy_norm import (  # noqa: F401
    BN_EPS,
    batch_moments,
    batch_norm,
    batch_norm_dx,
    moving_average,
)
from minivae.ops.numpy_norm import channel_sum as _channel_sum
from minivae.ops.threads import parallel, scratch, split

xp = np

ADAM_PIECE = 2**18  # elements: those of all five arrays fit in the caches of a core
IMAGES = 16  # of one thread's piece of the likelihood
PRODUCT = 2**24  # multiplications of one thread's piece
VAR_FLOOR = 1e-5  # added to softplus: the variance of q(z|x) never reaches zero
SIGMA_FLOOR = 1 / 127.5  # one grey level: a fitted p(x|z) narrower than that would describe the rounding


class Buffers:
    """Arrays made at their first use and kept: buffers("y", (64, 8), np.float32) is the same array every time."""

    def __init__(self):
        self._arrays = {}

    def __call__(self, name, shape, dtype):
        key = name, tuple(shape), np.dtype(dtype)
        if key not in self._arrays:
            self._arrays[key] = np.zeros(shape, dtype)
        return self._arrays[key]


def to_host(array):
    """The array as NumPy: itself here, a copy that waits for the device on a GPU."""
    return array


def capture(step):
    """A function that does what step() does, faster where the device can replay its launches."""
    return step


# Convolutions


def im2col(x, g, buffers):
    """The windows of x (N, H, W, I), in the form that conv and conv_dw multiply; `buffers` owns their memory."""
    return _convolutions(g, x.shape[3]).im2col(x, g, buffers)


def conv(cols, w, g, y, moments=None):
    """y (N, h, w, O) = im2col(x) @ w."""
    _convolutions(g, w.shape[2]).conv(cols, w, g, y)
    if moments is not None:
        batch_moments(y, moments)


def conv_dx(dy, w, g, dx, moments=None):
    """dx (N, H, W, I) = col2im(dy @ w^T): the adjoint of conv in x, and a transposed convolution's forward."""
    _convolutions(g, w.shape[2]).conv_dx(dy, w, g, dx)
    if moments is not None:
        batch_moments(dx, moments)


def conv_dw(cols, dy, g, dw):
    """dw (k, k, I, O) = im2col(x)^T @ dy."""
    _convolutions(g, dw.shape[2]).conv_dw(cols, dy, g, dw)


def _convolutions(g, channels):
    return numpy_toom_cook if numpy_toom_cook.suits(g, channels) else numpy_conv


# Dense products


def dense(x, w, y, moments=None):
    """y (N, O) = x (N, I) @ w (I, O)."""
    _product(x, w, y)
    if moments is not None:
        batch_moments(y, moments)


def dense_dx(dy, w, dx):
    """dx (N, I) = dy (N, O) @ w^T."""
    _product(dy, w.T, dx)


def dense_dw(x, dy, dw):
    """dw (I, O) = x^T @ dy."""
    _product(x.T, dy, dw)


def _product(a, b, out):
    """out = a @ b, on all cores along its longer side."""
    if len(a) < b.shape[1]:
        parallel(lambda part: np.matmul(a, b[:, part], out=out[:, part]), split(b.shape[1], PRODUCT // a.size))
    else:
        parallel(lambda part: np.matmul(a[part], b, out=out[part]), split(len(a), PRODUCT // b.size))


# The Gaussians: latent code and image


def latent(mean, s, eps, analytic, z, var, kl):
    """z (N, Z) = mean + sqrt(var) eps with var = softplus(s) + 1e-5, and kl (N,) in nats per image:

    sampled:  ln q(z|x) - ln p(z) = sum -ln(var)/2 - eps^2/2 + z^2/2       ((z - mean)^2 / var is eps^2)
    analytic: KL(q || p)          = sum (mean^2 + var - 1 - ln var)/2
    """
    np.add(np.logaddexp(s, 0), VAR_FLOOR, out=var)
    np.add(mean, np.sqrt(var) * eps, out=z)
    terms = mean**2 + var - 1 - np.log(var) if analytic else z**2 - eps**2 - np.log(var)
    np.divide(terms.sum(1), 2, out=kl)


def latent_dx(dz, mean, s, eps, analytic, scale, z, var, dmean, ds):
    """The gradients of L(z) + scale sum_n kl_n in mean and s, for dz = dL/dz (N, Z).

    sampled:  dmean = dz + scale z          dvar = (dz + scale z) eps / (2 sd) - scale / (2 var)
    analytic: dmean = dz + scale mean       dvar = dz eps / (2 sd) + scale (1 - 1/var) / 2
    both:     ds = dvar sigmoid(s)          derivation: docs/elbo.md
    """
    np.add(dz, scale * (mean if analytic else z), out=dmean)
    through_z = dz if analytic else dmean
    dvar = through_z * eps / (2 * np.sqrt(var)) - scale / (2 * var) + (scale / 2 if analytic else 0)
    np.multiply(dvar, np.exp(-np.logaddexp(0, -s)), out=ds)


def bias_tanh(a, b, x_hat):
    """x_hat (..., C) = tanh(a + b)."""
    np.tanh(np.add(a, b, out=x_hat), out=x_hat)


def tanh_gaussian(a, b, x, log_sigma, scale, x_hat, rec, da, db):
    """x_hat = tanh(a + b) and -ln N(x; x_hat, sigma^2) less (D/2) ln 2 pi, with its gradient in the same pass.

    rec (N,) = ||x - x_hat||^2 / (2 sigma^2) + D ln sigma in nats per image, D = H W C, log_sigma (1,) T
    da = scale (x_hat - x)(1 - x_hat^2) / sigma^2      db (C,) = sum da
    """
    precision = np.exp(-2 * log_sigma[0])  # exactly 1 for sigma = 1

    def work(images):
        error, shape = da[images], (len(rec[images]), -1)
        bias_tanh(a[images], b, x_hat[images])
        np.subtract(x_hat[images], x[images], out=error)
        np.einsum("ni,ni->n", error.reshape(shape), error.reshape(shape), out=rec[images])
        slope = np.square(x_hat[images], out=scratch("slope", error.shape, x_hat.dtype))
        np.subtract(1, slope, out=slope)
        error *= slope
        error *= scale * precision

    parallel(work, split(len(a), IMAGES))
    rec *= 0.5 * precision
    rec += x[0].size * log_sigma[0]
    db[...] = _channel_sum(da)


def log_sigma_dx(rec, log_sigma, size, scale, dlog_sigma):
    """dlog_sigma (1,) = scale sum_n (D - ||x - x_hat||^2 / sigma^2), the gradient of scale sum_n rec_n; D = size.

    rec (N,) is tanh_gaussian's at log_sigma (1,), which gives the squared error back: 2 (rec - D ln sigma).
    """
    dlog_sigma[0] = scale * (size - 2 * (rec - size * log_sigma[0])).sum()


def fit_sigma(rec, size, log_sigma):
    """log_sigma (1,) = ln(mean squared error) / 2 of a batch whose rec (N,) was made with sigma = 1; D = size.

    It minimizes tanh_gaussian's mean rec, so that there d rec / d sigma = 0. sigma is at least SIGMA_FLOOR.
    """
    log_sigma[0] = np.log(max(2 * rec.mean() / size, SIGMA_FLOOR**2)) / 2


def tanh_gaussian_pixel(a, b, x, scale, x_hat, rec, da, db):
    """tanh_gaussian with a variance for each value: a (N, H, W, 2C) and b (2C,) hold two heads, the mean's first.

    x_hat (N, H, W, C) = tanh(a1 + b1)      var = softplus(t) + SIGMA_FLOOR^2, t = a2 + b2      e = x_hat - x
    rec (N,) = sum e^2 / (2 var) + ln(var) / 2 in nats per image
    da1 = scale e (1 - x_hat^2) / var      da2 = scale (1 - e^2 / var) / (2 var) sigmoid(t)      db (2C,) = sum da
    """
    c = x.shape[-1]
    np.tanh(a[..., :c] + b[:c], out=x_hat)
    t = a[..., c:] + b[c:]
    var = np.logaddexp(t, 0) + t.dtype.type(SIGMA_FLOOR**2)
    error = x_hat - x
    ratio = error**2 / var
    rec[...] = (ratio + np.log(var)).reshape(len(a), -1).sum(1) / 2
    np.multiply(error * (1 - x_hat**2) / var, scale, out=da[..., :c])
    np.multiply((1 - ratio) / (2 * var) * np.exp(-np.logaddexp(0, -t)), scale, out=da[..., c:])
    db[...] = _channel_sum(da)


def add(total, term):
    """total += term, arrays of one shape: the gradient of a value used twice."""
    np.add(total, term, out=total)


# A training step's ends: noise, batch, update, log


def normal(seed, stream, t, out):
    """out = standard normals of Philox stream (seed, stream) at step t (1,) int64; see philox.normals."""
    out[...] = philox.normals(seed, stream, t[0], out.size).reshape(out.shape)


def gather(images, index, t, x):
    """x (N, H, W, C) = images[index[t mod S]] / 255 * 2 - 1: uint8 to [-1, 1].  index (S, N) int32, t (1,) int64."""
    batch = images[index[t[0] % len(index)]]
    np.divide(batch, x.dtype.type(127.5), out=x)
    x -= 1


def adam(values, grads, m, v, lr, t, beta1, beta2, eps):
    """One Adam update of flat arrays, t (1,) int64 updates having been made, lr (1,) float64.

    m = beta1 m + (1 - beta1) g      v = beta2 v + (1 - beta2) g^2
    values -= lr sqrt(1 - beta2^(t+1)) / (1 - beta1^(t+1)) m / (sqrt(v) + eps)
    """
    step = values.dtype.type(lr[0] * np.sqrt(1 - beta2 ** (t[0] + 1)) / (1 - beta1 ** (t[0] + 1)))

    def work(piece):
        p, g, mi, vi = (array[piece] for array in (values, grads, m, v))
        d = scratch("adam", p.shape, p.dtype)
        mi *= beta1
        mi += np.multiply(g, 1 - beta1, out=d)
        vi *= beta2
        vi += np.multiply(np.square(g, out=d), 1 - beta2, out=d)
        np.add(np.sqrt(vi, out=d), eps, out=d)
        np.divide(mi, d, out=d)
        d *= step
        p -= d

    parallel(work, split(values.size, ADAM_PIECE))


def record(rec, kl, t, history):
    """history[t mod S] (S, 2) float64 = mean of rec, mean of kl; then t += 1: the step is over."""
    history[t[0] % len(history)] = rec.mean(), kl.mean()
    t += 1
