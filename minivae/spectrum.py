"""p(x|z) whose noise has a spectrum, and one that follows z: what --sigma spectrum stands for.

docs/spectrum.md derives it. The residual of an image is smooth and its contrast differs from image to image, so noise
is described by the scale of each coefficient of a cosine transform, which z moves, with the tails of a Student-t.
"""

import numpy as np
from scipy.fft import dct, dctn
from scipy.special import gammaincinv

from minivae.gaussian import Likelihood
from minivae.layers import Dense
from minivae.ops import HALF_RANGE

NU = 8  # degrees of freedom
HIDDEN = 128  # units between z and the bands' scales
OCTAVES = 8  # of spatial frequency, each in two orientations and every colour axis
CALM = 0.1  # gamma before the last layer, at first: Adam's steps then move x_hat that much less
COLOURS = {1: np.eye(1), 3: np.array([(1, 1, 1), (1, 0, -1), (1, -2, 1)]) / np.sqrt([[3], [2], [6]])}  # orthonormal


class Spectrum(Likelihood):
    """f = F (x_hat - x) has the density of a Student-t with nu degrees of freedom and a scale for each coefficient.

    F is orthonormal: a cosine transform of rows and columns, and fixed colour axes. The scales are those of bands,
    which a small network finds, times one for each coefficient:

        h = tanh(z w1 + b1)     s = h w2     log_scale = s U     e^(log_scale + b)

    z (N, Z), w1 (Z, 128), w2 (128, B), U (B, D) zeros and ones: the band of each coefficient, b (D,). With
    d = sum f^2 / e^(2 (log_scale + b)) and the image's weight w = (nu + D)/(nu + d):

        rec = (nu + D)/2 ln(1 + d/nu) + sum (log_scale + b) + constant
        d rec/df = w f / e^(2 (log_scale + b))     d rec/dx_hat = F^T d rec/df = -d rec/dx
        d rec/dlog_scale = 1 - w f^2 / e^(2 (log_scale + b)) = d rec/db
    """

    def __init__(self, params, shape, latent, sigma):
        super().__init__(params, shape, latent, 1)
        height, width, channels = shape
        asarray = params.ops.xp.asarray
        self.hidden = Dense(params, "gen/spectrum/hidden", latent, HIDDEN)
        self.hidden_b = params.constant("gen/spectrum/hidden/b", (HIDDEN,), 0)
        membership = bands(shape)
        self.scales = Dense(params, "gen/spectrum/scales", HIDDEN, len(membership))
        self.spectrum = params.constant("gen/spectrum/b", (membership.shape[1],), 0)
        self.membership = asarray(membership, params.dtype)
        rows = dct(np.eye(height), axis=0, norm="ortho")
        columns = np.kron(dct(np.eye(width), axis=0, norm="ortho"), COLOURS[channels]).T
        self.rows = asarray(rows, params.dtype)
        self.inverse_rows = asarray(np.ascontiguousarray(rows.T), params.dtype)
        self.columns = asarray(np.ascontiguousarray(columns), params.dtype)

    def forward(self, a, x, z, train):
        self.x_hat = self.mean(a)
        error = self.like("error", x.shape, a)
        self.ops.subtract(self.x_hat, x, error)
        f = self.transform(error)
        log_scale = self.log_scale(z)
        rec = self.like("rec", a.shape[:1], a)
        self.df = self.like("df", f.shape, a)
        self.dlog_scale = self.like("dlog_scale", f.shape, a)
        self.ops.student(f, log_scale, self.spectrum.value, NU, 1 / len(a), rec, self.df, self.dlog_scale,
                         self.spectrum.grad)
        return rec

    def transform(self, error):
        """F of images (N, H, W, C), as (N, D)."""
        n, height, width, channels = error.shape
        by_columns = self.like("by_columns", (n * height, width * channels), error)
        self.ops.dense(error.reshape(by_columns.shape), self.columns, by_columns)
        f = self.like("f", (n, height, width * channels), error)
        self.ops.mix_rows(self.rows, by_columns.reshape(f.shape), f)
        return f.reshape(n, -1)

    def inverse(self, f):
        """F^T of f (N, D), which is F's inverse and its adjoint, as images (N, H, W, C)."""
        n = len(f)
        image = self.like("image", self.x_hat.shape, f)
        shape = (n, len(self.rows), len(self.columns))
        by_columns = self.like("by_columns", (n * shape[1], shape[2]), f)
        self.ops.mix_rows(self.inverse_rows, f.reshape(shape), by_columns.reshape(shape))
        self.ops.dense_dx(by_columns, self.columns, image.reshape(by_columns.shape))
        return image

    def log_scale(self, z):
        """That of each coefficient (N, D), less b."""
        a = self.hidden.forward(z)
        self.h = self.like("h", a.shape, a)
        self.ops.bias_tanh(a, self.hidden_b.value, self.h)
        s = self.scales.forward(self.h)
        log_scale = self.like("log_scale", (len(z), self.membership.shape[1]), s)
        self.ops.dense(s, self.membership, log_scale)
        return log_scale

    def backward(self, want_dw=True):
        self.dx_hat = self.inverse(self.df)
        da = self.like("da", self.dx_hat.shape, self.df)
        self.ops.bias_tanh_dx(self.dx_hat, self.x_hat, da, self.b.grad)
        ds = self.like("ds", (len(da), len(self.membership)), da)
        self.ops.dense_dx(self.dlog_scale, self.membership, ds)
        dh = self.scales.backward(ds, want_dw)
        dhidden = self.like("dhidden", dh.shape, dh)
        self.ops.bias_tanh_dx(dh, self.h, dhidden, self.hidden_b.grad)
        self.dz = self.hidden.backward(dhidden, want_dw)
        return da

    def add_dz(self, dz):
        self.ops.add(dz, self.dz)

    def dx(self):
        return -self.dx_hat

    def draw(self, a, z, noise):
        """x_hat + F^T f, f being normals times their scales over the root of chi-square/nu, one for each image."""
        xp = self.ops.xp
        self.x_hat = self.mean(a)
        log_scale = self.log_scale(z)
        chi_square = 2 * gammaincinv(NU / 2, noise.uniform((len(z), 1)))
        t = noise.normal(log_scale.shape) * np.sqrt(NU / chi_square)
        return self.x_hat + self.inverse(xp.asarray(t, a.dtype) * xp.exp(log_scale + self.spectrum.value))

    def start(self, images, generator):
        """x_hat is the images' mean colour, s is zero, and b that of a Student-t fitted to the images about x_hat."""
        x = images / HALF_RANGE - 1
        colour = x.mean((0, 1, 2))
        squares = (dctn(x - colour, axes=(1, 2), norm="ortho") @ COLOURS[x.shape[3]].T).reshape(len(x), -1) ** 2
        squares += 1 / HALF_RANGE**2 / 12  # dequantization's
        var = squares.mean(0)
        for _ in range(20):  # of EM, whose weights are w
            weight = (NU + len(var)) / (NU + (squares / var).sum(1))
            var = weight @ squares / len(x)
        asarray = self.ops.xp.asarray
        self.spectrum.value[...] = asarray(np.log(var) / 2, self.spectrum.value.dtype)
        self.b.value[...] = asarray(np.arctanh(colour), self.b.value.dtype)
        self.scales.w.value[...] = 0
        generator.tconv2.norm.gamma.value[...] = CALM
        generator.tconv3.w.value[...] = 0


def bands(shape):
    """(B, D) zeros and ones: which coefficients (H, W, C) each band has, octaves x 2 orientations x C colours."""
    height, width, channels = shape
    longest = max(height, width)
    p = np.arange(height)[:, None] * longest / height
    q = np.arange(width)[None] * longest / width
    octave = np.log2(1 + np.hypot(p, q))
    octave = np.minimum(octave / octave.max() * OCTAVES, OCTAVES - 1).astype(int)
    band = ((octave * 2 + (p > q))[..., None] * channels + np.arange(channels)).reshape(-1)
    return (np.arange(OCTAVES * 2 * channels)[:, None] == band).astype(float)
