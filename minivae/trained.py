"""A trained model as Python sees it: arrays of uint8 images in and out, on the host, any number of them."""

import numpy as np
from tqdm import tqdm

from minivae.density import estimates, score
from minivae.density.estimates import Model, Noise, numbered
from minivae.errors import UserError
from minivae.images.data import hashes
from minivae.training import figures


class TrainedVAE:
    """images (N, H, W, C) uint8, codes z (N, Z); batch norm is in test mode throughout."""

    def __init__(self, vae):
        self.vae = vae
        self.model = Model(vae)

    def encode(self, images):
        """mean, var (N, Z) float32 of q(z|x). UserError if the images are of another shape or type."""
        batches = [self.model.posterior(self.model.device(estimates.scaled(part))) for part in self._batches(images)]
        mean, var = (np.concatenate(parts).astype(np.float32) for parts in zip(*batches, strict=True))
        return mean, var

    def decode(self, z):
        """x_hat, the mean of p(x|z), as images."""
        return np.concatenate([figures.to_uint8(figures.decode(self.vae, z[rows])) for rows in self._rows(len(z))])

    def sample(self, count, seed=0, noise=False):
        """Images of `count` codes that the seed draws from the prior: x_hat, or with noise=True draws of p(x|z)."""
        z = figures.prior(self.vae, count, seed)
        if not noise:
            return self.decode(z)
        numbers = Noise(seed, "simulated pixels", numbered(count))
        return np.concatenate([figures.to_uint8(self.vae.ops.to_host(self.model.simulate(z[rows], numbers.of(rows))))
                               for rows in self._rows(count)])

    def score(self, images, importance=100, seed=0):
        """A lower bound on average (IWAE) on ln p(x), (N,) nats per image, for images x in [-1, 1].

        importance: draws of z for each image. UserError if the images are of another shape or type.
        """
        settings = {"seed": seed, "importance": importance}
        batches = [score.bounds(self.model, part, list(hashes(part)), settings, estimates.silent)["iwae"]
                   for part in self._batches(images)]
        return np.concatenate(batches)

    def _batches(self, images):
        """The images, some at a time. UserError if they are of another shape or type."""
        if images.shape[1:] != self.vae.shape or images.dtype != np.uint8 or not len(images):
            shape = ", ".join(map(str, self.vae.shape))
            raise UserError(f"images of shape {images.shape} and type {images.dtype}; give uint8 (N, {shape})")
        for rows in self._rows(len(images)):
            yield images[rows]

    def _rows(self, count):
        """The batches of `count` images, as slices."""
        size = self.vae.ops.IMAGES_AT_ONCE
        starts = tqdm(range(0, count, size), unit="batch", delay=1, leave=False, disable=None)
        return (slice(start, start + size) for start in starts)
