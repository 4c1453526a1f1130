"""The two Gaussians of the model, each with its backward: q(z|x), sampled by reparameterization, and p(x|z).

The loss of one image, in nats, is the negative evidence lower bound less a constant:

    loss = rec + kl      rec = -ln p(x|z) - (D/2) ln 2 pi      kl = ln q(z|x) - ln p(z)  at the sampled z

Source: Kingma and Welling, arXiv 1312.6114. docs/elbo.md derives q(z|x) and the KL, docs/gradients.md p(x|z).
"""

import math

from minivae.layers import Layer
from minivae.parameters import Parameter


class Posterior(Layer):
    """q(z|x) = N(mean, var), var = softplus(s) + 1e-5, and z = mean + sqrt(var) eps, eps ~ N(0, 1).

    The draw is moved into eps, so z is a differentiable function of mean and s (the floor keeps var from zero).
    kl="sample" takes ln q(z|x) - ln p(z) at that z. Its gradient has three paths: through z, and through the mean and
    var inside ln q. With L the loss, dz = dL/dz from the generator alone and sd = sqrt(var):

        d ln q/dz = -(z - mean)/var     d ln q/dmean = (z - mean)/var     d ln q/dvar = eps^2/(2 var) - 1/(2 var)
        dmean = (dz + z)                     ln q's two paths into mean cancel; -ln p(z) leaves z
        dvar  = (dz + z) eps/(2 sd) - 1/(2 var)     eps^2/(2 var) cancels against -(z - mean)/var eps/(2 sd)
        ds    = dvar sigmoid(s)

    kl="analytic" replaces it by its expectation, (mean^2 + var - 1 - ln var)/2, summed:

        dmean = dz + mean     dvar = dz eps/(2 sd) + (1 - 1/var)/2

    A batch mean multiplies each kl term by 1/N. mean, s, eps, z (N, Z); kl (N,) nats per image.
    """

    def __init__(self, params, analytic):
        super().__init__(params)
        self.analytic = analytic

    def forward(self, mean, s, eps):
        self.mean = mean
        self.s = s
        self.eps = eps
        self.z = self.like("z", mean.shape, mean)
        self.var = self.like("var", mean.shape, mean)
        kl = self.like("kl", mean.shape[:1], mean)
        self.ops.latent(mean, s, eps, self.analytic, self.z, self.var, kl)
        return self.z, kl

    def backward(self, dz):
        dmean = self.like("dmean", dz.shape, dz)
        ds = self.like("ds", dz.shape, dz)
        self.ops.latent_dx(dz, self.mean, self.s, self.eps, self.analytic, 1 / len(dz), self.z, self.var, dmean, ds)
        return dmean, ds


class Likelihood(Layer):
    """p(x|z) = N(x; x_hat, sigma^2), with x_hat = tanh(a + b) and a fixed sigma; sigmas.py has those that are fitted.

    rec = ||x - x_hat||^2 / (2 sigma^2) + D ln sigma, D = H W C      (for sigma = 1: half the squared error)
    da = (x_hat - x)(1 - x_hat^2) / (sigma^2 N)      db = sum da

    a (N, H, W, C) from the generator, b (C,), rec (N,) nats per image. rec and da need the same x_hat and x, so one
    pass over the image finds both and db, and backward has only to hand da over. z (N, Z) counts beside a in one of
    the fitted ones alone.
    """

    heads = 1  # of the generator, with C channels each
    also_seen = None  # a layer of images through which the encoder sees them too

    def __init__(self, params, shape, latent, sigma):
        super().__init__(params)
        self.b = params.constant("gen/tconv3/b", (self.heads * shape[2],), 0)
        self.log_sigma = Parameter("gen/log_sigma", (1,), None)
        self.log_sigma.value = self.ops.xp.full(1, math.log(float(sigma)), params.dtype)

    def forward(self, a, x, z, train):
        return self.gaussian(a, x, self.log_sigma.value)

    def gaussian(self, a, x, log_sigma):
        """rec (N,) with the sigma of log_sigma (1,)."""
        self.x = x
        self.present_log_sigma = log_sigma
        self.x_hat = self.like("x_hat", x.shape, a)
        self.da = self.like("da", a.shape, a)
        rec = self.like("rec", a.shape[:1], a)
        self.ops.tanh_gaussian(a, self.b.value, x, log_sigma, 1 / len(a), self.x_hat, rec, self.da, self.b.grad)
        return rec

    def backward(self, want_dw=True):
        return self.da

    def add_dz(self, dz):
        """Add to dz = dL/dz what comes from z beside a, after backward: nothing here."""

    def dx(self):
        """dL/dx (N, H, W, C), x being what p(x|z) shall explain: (x - x_hat) / (sigma^2 N)."""
        return (self.x - self.x_hat) / (self.ops.xp.exp(2 * self.present_log_sigma) * len(self.x))

    def mean(self, a):
        """x_hat (N, H, W, C) in [-1, 1] alone: what sampling wants."""
        x_hat = self.like("x_hat", a.shape, a)
        self.ops.bias_tanh(a, self.b.value, x_hat)
        return x_hat

    def var(self, a):
        """sigma^2 in test mode (1,)."""
        return self.ops.xp.exp(2 * self.log_sigma.value)

    def draw(self, a, z, noise):
        """Images (N, H, W, C) drawn from p(x|z) in test mode; noise.normal(shape) gives standard normals."""
        x_hat = self.mean(a)
        eps = self.ops.xp.asarray(noise.normal(x_hat.shape), a.dtype)
        return x_hat + self.var(a) ** 0.5 * eps

    def start(self, images, generator):
        """Begin a run from training images (N, H, W, C) uint8, as fitted sigmas do: nothing here."""
