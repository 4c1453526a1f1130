"""The model and its gradient, each on one screen: backward is forward read upwards.

Architecture: Rui Shu, "Density Estimation: Variational Autoencoders" (2018). Images (N, H, W, C) in [-1, 1], H and W
divisible by 8; sizes in comments are the reference's, H = W = 32, C = 3.
"""

from dataclasses import dataclass

import numpy as np

from minivae.conditional import AppendLabel
from minivae.gaussian import Likelihood, Posterior
from minivae.layers import conv_block, conv_transpose, conv_transpose_block, dense_block
from minivae.parameters import Parameters
from minivae.sigmas import FITTED_SIGMAS


@dataclass(frozen=True)
class Widths:
    """Channels of the three convolutions, units of the dense layer, channels of the generator's three images."""

    conv: tuple = (32, 64, 128)
    hidden: int = 1024
    generator: tuple = (512, 128, 64)


class Encoder:
    """x -> mean, s of q(z|x) = N(mean, softplus(s) + 1e-5); batch norm on both heads, as the reference has it."""

    def __init__(self, params, shape, latent, widths, also_seen=None):
        height, width, channels = shape
        c1, c2, c3 = widths.conv
        self.conv1 = conv_block(params, "enc/conv1", (height, width), channels, c1)
        self.conv2 = conv_block(params, "enc/conv2", (height // 2, width // 2), c1, c2)
        self.conv3 = conv_block(params, "enc/conv3", (height // 4, width // 4), c2, c3)
        self.dense = dense_block(params, "enc/dense", height // 8 * (width // 8) * c3, widths.hidden)
        self.mean = dense_block(params, "enc/mean", widths.hidden, latent, slope=1)
        self.var = dense_block(params, "enc/var", widths.hidden, latent, slope=1)
        self.also = also_seen(params, shape, widths.hidden) if also_seen else None
        self.ops = params.ops

    def forward(self, x, train):
        if self.also:
            self.also.forward(x, train)
        h = self.conv1.forward(x, train)  # (N, 16, 16, 32)
        h = self.conv2.forward(h, train)  # (N, 8, 8, 64)
        h = self.conv3.forward(h, train)  # (N, 4, 4, 128)
        self.image_shape = h.shape
        h = self.dense.forward(h.reshape(len(h), -1), train)  # (N, 1024)
        if self.also:
            self.also.add_to(h)
        return self.ops.beside(lambda: self.mean.forward(h, train),
                               lambda: self.var.forward(h, train))  # (N, Z) each

    def backward(self, dmean, ds, want_dx=False, ready=None):
        dh, dh_of_var = self.ops.beside(lambda: self.mean.backward(dmean), lambda: self.var.backward(ds))
        self.ops.add(dh, dh_of_var)  # h feeds both heads: its gradient is the sum of theirs
        also_dx = self.also.backward(dh, want_dx) if self.also else None
        dh = self.dense.backward(dh).reshape(self.image_shape)
        if ready:
            ready(self.dense.affine.w)
        dh = self.conv3.backward(dh)
        dh = self.conv2.backward(dh)
        dx = self.conv1.backward(dh, want_dx=want_dx)
        if want_dx and self.also:
            self.ops.add(dx, also_dx)
        return dx


class Generator:
    """z -> a (N, H, W, C), of which x_hat = tanh(a + b); with heads=2 as many channels again, for the variance."""

    def __init__(self, params, shape, latent, widths, heads=1):
        height, width, channels = shape
        c1, c2, c3 = widths.generator
        self.image_shape = height // 8, width // 8, c1
        self.dense = dense_block(params, "gen/dense", latent, height // 8 * (width // 8) * c1)
        self.tconv1 = conv_transpose_block(params, "gen/tconv1", (height // 4, width // 4), c1, c2)
        self.tconv2 = conv_transpose_block(params, "gen/tconv2", (height // 2, width // 2), c2, c3)
        self.tconv3 = conv_transpose(params, "gen/tconv3", (height, width), c3, heads * channels)

    def forward(self, z, train):
        h = self.dense.forward(z, train).reshape(len(z), *self.image_shape)  # (N, 4, 4, 512)
        h = self.tconv1.forward(h, train)  # (N, 8, 8, 128)
        h = self.tconv2.forward(h, train)  # (N, 16, 16, 64)
        return self.tconv3.forward(h)  # (N, 32, 32, 3)

    def backward(self, da, want_dw=True):
        """dL/dz (N, Z); want_dw=False for it alone."""
        dh = self.tconv3.backward(da, want_dw=want_dw)
        dh = self.tconv2.backward(dh, want_dw=want_dw)
        dh = self.tconv1.backward(dh, want_dw=want_dw)
        return self.dense.backward(dh.reshape(len(dh), -1), want_dw=want_dw)


class VAE:
    """shape (H, W, C); ops plain, numpy_ops or cuda_ops; dtype float32, or float64 to check gradients; kl "sample" or
    "analytic" (see gaussian.Posterior); sigma a number or one of sigmas.FITTED_SIGMAS; classes Y, 0 for no labels.
    """

    def __init__(self, shape, latent, ops, dtype=np.float32, seed=0, kl="sample", widths=Widths(), sigma=1.0,
                 classes=0):
        self.params = Parameters(ops, dtype, seed)
        kind = FITTED_SIGMAS.get(sigma, Likelihood)
        self.encoder = Encoder(self.params, shape, latent, widths, kind.also_seen)
        self.generator = Generator(self.params, shape, latent + classes, widths, kind.heads)
        self.posterior = Posterior(self.params, analytic=kl == "analytic")
        self.label = AppendLabel(self.params, classes)
        self.likelihood = kind(self.params, shape, latent + classes, sigma)
        self.params.allocate()
        self.shape = tuple(shape)
        self.latent = latent
        self.sigma = sigma
        self.dequantized = sigma in FITTED_SIGMAS  # what it trains on
        self.ops = ops
        self.dtype = np.dtype(dtype)

    def start(self, images):
        """Begin a run: a fitted sigma takes its first value from training images (N, H, W, C) uint8."""
        self.likelihood.start(images, self.generator)

    def forward(self, x, eps, train=True, labels=None):
        """rec, kl (N,) in nats per image, for x (N, H, W, C) and eps (N, Z); the loss L is the mean of their sum.

        With classes, labels (N,) int32 are the images'. The next forward overwrites rec and kl.
        """
        mean, s = self.encoder.forward(x, train)
        z, kl = self.posterior.forward(mean, s, eps)
        return self.rec(z, x, train, labels), kl

    def rec(self, z, x, train=True, labels=None):
        """-ln p(x|z) - (D/2) ln 2 pi (N,) in nats per image, for z (N, Z) and x (N, H, W, C)."""
        z = self.label.forward(z, labels)
        a = self.generator.forward(z, train)
        return self.likelihood.forward(a, x, z, train)

    def backward(self, want_dx=False, ready=None):
        """Find dL/d of every parameter for the last forward, and return dL/dx if asked.

        x counts twice: it goes through the encoder, and it is what p(x|z) shall explain. ready(p) is called as soon as
        the parameters from p on have their gradients, but for weights that the branch "dw" is still at.
        """
        dz = self.rec_dz(ready=ready)
        dmean, ds = self.posterior.backward(dz)
        dx = self.encoder.backward(dmean, ds, want_dx, ready)
        if want_dx:
            self.ops.add(dx, self.likelihood.dx())
        return dx

    def rec_dz(self, want_dw=True, ready=None):
        """d(mean rec)/dz (N, Z) of the last rec. want_dw=False finds it alone, as sampling from p(z|x) wants it."""
        dz = self.generator.backward(self.likelihood.backward(want_dw), want_dw)
        self.likelihood.add_dz(dz)
        if ready:
            ready(self.generator.dense.affine.w)
        return self.label.backward(dz)

    def encode(self, x):
        """The means of q(z|x) (N, Z), batch norm in test mode. The array is the caller's."""
        mean, _ = self.encoder.forward(x, train=False)
        return mean.copy()

    def decode(self, z, labels=None):
        """x_hat (N, H, W, C) in [-1, 1], batch norm in test mode. The array is the caller's."""
        a = self.generator.forward(self.label.forward(z, labels), train=False)
        return self.likelihood.mean(a).copy()

    def draw(self, z, noise, labels=None):
        """Images (N, H, W, C) drawn from p(x|z), batch norm in test mode. The array is the caller's.

        noise.normal(shape) and noise.uniform(shape) give random numbers, float64 on the host.
        """
        z = self.label.forward(z, labels)
        return self.likelihood.draw(self.generator.forward(z, train=False), z, noise)
