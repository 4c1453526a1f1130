"""p(x|z) whose noise has a spectrum, and one that follows z: what --sigma spectrum stands for.

docs/spectrum.md derives it. The residual of an image is smooth and its contrast differs from image to image, so noise
is described by the scale of each coefficient of a cosine transform, which z moves, with the tails of a Student-t.
"""

import math

import numpy as np
from scipy.fft import dct, dctn
from scipy.special import gammaincinv

from minivae.gaussian import Likelihood
from minivae.layers import LEAKY_SLOPE, BatchNorm, Dense, Layer
from minivae.ops import HALF_RANGE, PIXEL_VAR

NU = 8  # degrees of freedom
HIDDEN = 128  # units between z and the scales
OCTAVES = 8  # of spatial frequency, each in two orientations and every colour axis
CALM = 0.1  # gamma before the last layer, at first: Adam's steps then move x_hat that much less
COLOURS = {1: np.eye(1), 3: np.array([(1, 1, 1), (1, 0, -1), (1, -2, 1)]) / np.sqrt([[3], [2], [6]])}  # orthonormal


class Cosines(Layer):
    """f = F x      x (N, H, W, C)   f (N, D)      dx = F^T df

    F is orthonormal: a cosine transform of each row and column, of fixed colour axes. Columns and colours are one axis
    of W C values, which one matrix turns.
    """

    def __init__(self, params, shape):
        super().__init__(params)
        height, width, channels = shape
        rows = dct(np.eye(height), axis=0, norm="ortho")
        columns = np.kron(dct(np.eye(width), axis=0, norm="ortho"), COLOURS[channels]).T
        self.shape = shape
        self.rows = constant(rows, params)
        self.inverse_rows = constant(rows.T, params)
        self.columns = constant(columns, params)
        self.inverse_columns = constant(columns.T, params)

    def forward(self, x):
        shape = len(x), len(self.rows), len(self.columns)
        turned = self.like("turned", shape, x)
        f = self.like("f", shape, x)
        self.ops.mix_columns(x.reshape(shape), self.columns, turned)
        self.ops.mix_rows(self.rows, turned, f)
        return f.reshape(len(x), -1)

    def backward(self, df):
        """F^T is F's inverse as well."""
        shape = len(df), len(self.rows), len(self.columns)
        turned = self.like("turned", shape, df)
        dx = self.like("dx", (len(df), *self.shape), df)
        self.ops.mix_rows(self.inverse_rows, df.reshape(shape), turned)
        self.ops.mix_columns(turned, self.inverse_columns, dx.reshape(shape))
        return dx


class BandEnergies(Layer):
    """What the encoder sees of x beside its convolutions: y = leaky(BN(energy)) w.

    energy (N, B) is the logarithm of each band's mean square, w (B, O), y (N, O); x (N, H, W, C).
    """

    def __init__(self, params, shape, outputs):
        super().__init__(params)
        self.cosines = Cosines(params, shape)
        self.pool = constant(bands(shape), params)
        self.norm = BatchNorm(params, "enc/energies", len(self.pool), LEAKY_SLOPE)
        self.dense = Dense(params, "enc/energies", len(self.pool), outputs)

    def forward(self, x, train):
        with self.ops.branch("energies"):
            self.f = self.cosines.forward(x)
            self.energy = self.like("energy", (len(x), len(self.pool)), x)
            self.ops.log_energy(self.f, self.pool, self.energy)
            self.y = self.dense.forward(self.norm.forward(self.energy, train))

    def add_to(self, h):
        self.ops.join("energies")
        self.ops.add(h, self.y)

    def backward(self, dy, want_dx):
        denergy = self.norm.backward(self.dense.backward(dy))
        self.ops.join("dw")  # which reads dy; the encoder overwrites it next
        if want_dx:
            df = self.like("df", self.f.shape, dy)
            self.ops.log_energy_dx(denergy, self.f, self.pool, self.energy, df)
            return self.cosines.backward(df)


class Spectrum(Likelihood):
    """f = F (x_hat - x) has the density of a Student-t with nu degrees of freedom; F is that of Cosines.

    The scales are those that all images share, e^b, times what a small network makes of z:

        h = tanh(z w1 + b1)     log_scale = h w2     scale e^(log_scale + b)

    z (N, Z), w1 (Z, 128), w2 (128, D), b (D,). With d = sum f^2 / e^(2 (log_scale + b)) and the image's weight
    w = (nu + D)/(nu + d):

        rec = (nu + D)/2 ln(1 + d/nu) + sum (log_scale + b) + constant
        d rec/df = w f / e^(2 (log_scale + b))     d rec/dx_hat = F^T d rec/df = -d rec/dx
        d rec/dlog_scale = 1 - w f^2 / e^(2 (log_scale + b)) = d rec/db
    """

    also_seen = BandEnergies

    def __init__(self, params, shape, latent, sigma):
        super().__init__(params, shape, latent, 1)
        size = math.prod(shape)
        self.cosines = Cosines(params, shape)
        self.hidden = Dense(params, "gen/spectrum/hidden", latent, HIDDEN)
        self.hidden_b = params.constant("gen/spectrum/hidden/b", (HIDDEN,), 0)
        self.scales = Dense(params, "gen/spectrum/scales", HIDDEN, size)
        self.spectrum = params.constant("gen/spectrum/scales/b", (size,), 0)

    def forward(self, a, x, z, train):
        with self.ops.branch("scales"):
            log_scale = self.log_scale(z)
        self.x_hat = self.mean(a)
        error = self.like("error", x.shape, a)
        self.ops.subtract(self.x_hat, x, error)
        f = self.cosines.forward(error)
        self.ops.join("scales")
        rec = self.like("rec", a.shape[:1], a)
        self.df = self.like("df", f.shape, a)
        self.dlog_scale = self.like("dlog_scale", f.shape, a)
        self.ops.student(f, log_scale, self.spectrum.value, NU, 1 / len(a), rec, self.df, self.dlog_scale,
                         self.spectrum.grad)
        return rec

    def log_scale(self, z):
        """That of each coefficient (N, D), less b."""
        a = self.hidden.forward(z)
        self.h = self.like("h", a.shape, a)
        self.ops.bias_tanh(a, self.hidden_b.value, self.h)
        return self.scales.forward(self.h)

    def backward(self, want_dw=True):
        with self.ops.branch("scales"):
            dh = self.scales.backward(self.dlog_scale, want_dw)
            dhidden = self.like("dhidden", dh.shape, dh)
            self.ops.bias_tanh_dx(dh, self.h, dhidden, self.hidden_b.grad)
            self.dz = self.hidden.backward(dhidden, want_dw)
        self.dx_hat = self.cosines.backward(self.df)
        da = self.like("da", self.dx_hat.shape, self.df)
        self.ops.bias_tanh_dx(self.dx_hat, self.x_hat, da, self.b.grad)
        return da

    def add_dz(self, dz):
        self.ops.join("scales")
        self.ops.add(dz, self.dz)

    def dx(self):
        return -self.dx_hat

    def draw(self, a, z, noise):
        """x_hat + F^T f, f being normals times their scales over the root of chi-square/nu, one for each image."""
        xp = self.ops.xp
        log_scale = self.log_scale(z)
        chi_square = 2 * gammaincinv(NU / 2, noise.uniform((len(z), 1)))
        t = noise.normal(log_scale.shape) * np.sqrt(NU / chi_square)
        return self.mean(a) + self.cosines.backward(xp.asarray(t, a.dtype) * xp.exp(log_scale + self.spectrum.value))

    def start(self, images, generator):
        """x_hat is the mean colour of images, log_scale is zero, and b that of a Student-t fitted to x - x_hat."""
        x = images / HALF_RANGE - 1
        colour = x.mean((0, 1, 2))
        squares = (dctn(x - colour, axes=(1, 2), norm="ortho") @ COLOURS[x.shape[3]].T).reshape(len(x), -1) ** 2
        squares += PIXEL_VAR  # dequantization's
        var = squares.mean(0)
        for _ in range(20):  # of EM, whose weights are w
            weight = (NU + len(var)) / (NU + (squares / var).sum(1))
            var = weight @ squares / len(x)
        asarray = self.ops.xp.asarray
        self.spectrum.value[...] = asarray(np.log(var) / 2, self.spectrum.value.dtype)
        self.b.value[...] = asarray(np.arctanh(np.clip(colour, -0.99, 0.99)), self.b.value.dtype)  # black is -1
        self.scales.w.value[...] = 0
        generator.tconv2.norm.gamma.value[...] = CALM
        generator.tconv3.w.value[...] = 0


def bands(shape):
    """(B, D): row b averages over the coefficients of band b, an octave of one orientation and one colour axis."""
    height, width, channels = shape
    p = np.arange(height)[:, None] / height
    q = np.arange(width) / width
    octave = np.log2(1 + np.hypot(p, q) * max(height, width))
    octave = np.minimum(octave / octave.max() * OCTAVES, OCTAVES - 1).astype(int)
    band = ((octave * 2 + (p > q))[..., None] * channels + np.arange(channels)).reshape(-1)
    members = np.unique(band)[:, None] == band  # small images lack some bands
    return members / members.sum(1, keepdims=True)


def constant(matrix, params):
    """A matrix on the model's device and in its dtype."""
    return params.ops.xp.asarray(np.ascontiguousarray(matrix), params.dtype)
