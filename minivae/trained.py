"""A trained model as Python sees it: arrays of uint8 images in and out, on the host, any number of them."""

import numpy as np
from tqdm import tqdm

from minivae.density import estimates, score
from minivae.density.estimates import Model
from minivae.errors import UserError
from minivae.images.data import hashes
from minivae.training import figures


class TrainedVAE:
    """images (N, H, W, C) uint8, codes z (N, Z); batch norm is in test mode throughout.

    label_names: what the labels are called that the model is given, if it is given any. labels are N of those.
    """

    def __init__(self, vae, label_names=()):
        self.vae = vae
        self.label_names = label_names
        self.model = Model(vae)

    def encode(self, images):
        """mean, var (N, Z) float32 of q(z|x). UserError if the images are of another shape or type."""
        batches = [self.model.posterior(self.model.device(estimates.scaled(part))) for _, part in self._batches(images)]
        mean, var = (np.concatenate(parts).astype(np.float32) for parts in zip(*batches, strict=True))
        return mean, var

    def decode(self, z, labels=None):
        """x_hat, the mean of p(x|z), as images. UserError if the labels are not such as the model is given."""
        return figures.to_uint8(figures.decode(self.vae, z, self._numbers(labels, len(z))))

    def sample(self, count, seed=0, noise=False, label=None):
        """Images of `count` codes that the seed draws from the prior: x_hat, or with noise=True draws of p(x|z).

        A model that is given labels gets this one, or else each of them for 20 images in turn. UserError if it has none
        of that name.
        """
        number = None if label is None else self.number(label)
        return figures.to_uint8(figures.sample(self.vae, count, seed, number, noise))

    def score(self, images, importance=100, seed=0, labels=None):
        """A lower bound on average (IWAE) on ln p(x), (N,) nats per image, for images x in [-1, 1].

        importance: draws of z for each image. For a model that is given labels it is ln p(x|y). UserError if the images
        are of another shape or type, or the labels not such as the model is given.
        """
        numbers = self._numbers(labels, len(images))
        settings = {"seed": seed, "importance": importance}
        scores = []
        for rows, part in self._batches(images):
            model = Model(self.vae, _of(numbers, rows))
            scores.append(score.bounds(model, part, list(hashes(part)), settings, estimates.silent)["iwae"])
        return np.concatenate(scores)

    def number(self, label):
        """The number that the model knows a label by. UserError if it knows none of that name."""
        known = self.label_names
        if str(label) not in known:
            which = f"knows {', '.join(known)}" if known else "was trained without --labels"
            raise UserError(f"{label} is no label of this model, which {which}")
        return known.index(str(label))

    def _numbers(self, labels, count):
        """Those of the labels (N,), None if neither labels nor a model that is given them are there."""
        if labels is None and not self.label_names:
            return None
        if labels is None or len(labels) != count:
            raise UserError(f"the model is given labels: give {count} of them, one for each image")
        return np.array([self.number(label) for label in labels])

    def _batches(self, images):
        """Slices of the images, each with its images. UserError if they are of another shape or type."""
        if images.shape[1:] != self.vae.shape or images.dtype != np.uint8 or not len(images):
            shape = ", ".join(map(str, self.vae.shape))
            raise UserError(f"images of shape {images.shape} and type {images.dtype}; give uint8 (N, {shape})")
        size = self.vae.ops.IMAGES_AT_ONCE
        for start in tqdm(range(0, len(images), size), unit="batch", delay=1, leave=False, disable=None):
            rows = slice(start, start + size)
            yield rows, images[rows]


def _of(numbers, rows):
    return None if numbers is None else numbers[rows]
