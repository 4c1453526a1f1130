"""p(x|z) with a sigma that is fitted: a class for each of the names that sigma may have instead of a number.

Each is used as gaussian.Likelihood is, whose docstring has the symbols. docs/gradients.md derives them.
"""

import math

from minivae.gaussian import Likelihood
from minivae.layers import DECAY
from minivae.ops import SIGMA_FLOOR
from minivae.spectrum import Spectrum


class Learned(Likelihood):
    """sigma = exp(log_sigma), one parameter:  dlog_sigma = sum_n (D - ||x - x_hat||^2 / sigma^2) / N"""

    def __init__(self, params, shape, latent, sigma):
        super().__init__(params, shape, latent, 1)
        self.log_sigma = params.constant("gen/log_sigma", (1,), 0)

    def forward(self, a, x, z, train):
        rec = super().forward(a, x, z, train)
        size = math.prod(x.shape[1:])
        self.ops.log_sigma_dx(rec, self.log_sigma.value, size, 1 / len(a), self.log_sigma.grad)
        return rec

    def start(self, images, generator):
        """sigma is the root mean square of an image about its own mean, averaged over images; at least a grey level."""
        spread = images.std((1, 2, 3)).mean()  # in grey levels
        self.log_sigma.value[...] = math.log(max(spread, 1) * SIGMA_FLOOR)


class Optimal(Likelihood):
    """sigma is in training the batch's root mean squared error, which minimizes its mean rec.

    Mean rec is then D/2 ln(mse) + D/2, and since its derivative in sigma is zero there, da is that of a fixed sigma. It
    takes one pass to find sigma and one to use it. In test mode ln sigma is a moving average, as batch norm's are.
    Source: Rybkin, Daniilidis, Levine, sigma-VAE, arXiv 2006.13202.
    """

    def __init__(self, params, shape, latent, sigma):
        super().__init__(params, shape, latent, 1)
        self.one = self.log_sigma.value
        self.log_sigma = params.moving("gen/log_sigma", (1,), 0)

    def forward(self, a, x, z, train):
        if not train:
            return super().forward(a, x, z, train)
        fitted = self.like("fitted", (1,), a)
        rec = self.gaussian(a, x, self.one)
        self.ops.fit_sigma(rec, math.prod(x.shape[1:]), fitted)
        self.ops.moving_average(self.log_sigma.value, fitted, DECAY)
        return self.gaussian(a, x, fitted)


class Pixel(Likelihood):
    """A variance for each value, from a second head: a (N, H, W, 2C), b (2C,); see plain_sigmas.tanh_gaussian_pixel."""

    heads = 2

    def __init__(self, params, shape, latent, sigma):
        super().__init__(params, shape, latent, 1)
        self.channels = shape[2]

    def forward(self, a, x, z, train):
        self.a = a
        self.x = x
        self.x_hat = self.like("x_hat", x.shape, a)
        self.da = self.like("da", a.shape, a)
        rec = self.like("rec", a.shape[:1], a)
        self.ops.tanh_gaussian_pixel(a, self.b.value, x, 1 / len(a), self.x_hat, rec, self.da, self.b.grad)
        return rec

    def dx(self):
        return (self.x - self.x_hat) / (self.var(self.a) * len(self.x))

    def mean(self, a):
        a = self.ops.xp.ascontiguousarray(a[..., : self.channels])
        x_hat = self.like("x_hat", a.shape, a)
        self.ops.bias_tanh(a, self.b.value[: self.channels], x_hat)
        return x_hat

    def var(self, a):
        """(N, H, W, C)"""
        t = a[..., self.channels :] + self.b.value[self.channels :]
        return self.ops.xp.logaddexp(t, 0) + SIGMA_FLOOR**2


FITTED_SIGMAS = {"optimal": Optimal, "learned": Learned, "pixel": Pixel, "spectrum": Spectrum}
