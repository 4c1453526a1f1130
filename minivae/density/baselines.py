"""Densities of images that need no network, to compare a VAE's with: exact, in nats per image."""

import math

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from minivae.density.estimates import log_normal, scaled
from minivae.images.stream import MEMORY_FRACTION, memory
from minivae.ops import HALF_RANGE

BLOCK = 1000  # images whose products go into the covariance at once


def uniform(size):
    """ln p(x) of `size` values, each evenly spread over 256 grey levels: 8 bits per dimension."""
    return size * math.log(HALF_RANGE / 256)


def fits_in_memory(size):
    """Whether the covariance of `size` values takes at most a quarter of the memory."""
    return 8 * size**2 <= MEMORY_FRACTION * memory()


class FullGaussian:
    """One Gaussian with a full covariance, fitted to training images (N, H, W, C) uint8.

    The covariance is S + ridge I. S is that of nine tenths of the images, float64 on the host. The
    ridge is the one under which the last tenth is likeliest: it is doubled, from a quarter of a
    grey level's variance, until the likelihood falls.
    """

    def __init__(self, images, progress=iter):
        held_out = scaled(images[::10])
        fitted = images[np.arange(len(images)) % 10 > 0]
        size = held_out[0].size
        total = np.zeros(size)
        covariance = np.zeros((size, size))
        for start in range(0, len(fitted), BLOCK):
            x = scaled(fitted[start : start + BLOCK]).reshape(-1, size)
            total += x.sum(0)
            covariance += x.T @ x
        self.mean = total / len(fitted)
        covariance /= len(fitted)
        covariance -= np.outer(self.mean, self.mean)
        best = -math.inf
        for power in progress(range(-2, 20)):
            ridged = covariance.copy()
            ridged.flat[:: size + 1] += 2.0**power / HALF_RANGE**2 / 12
            root = cholesky(ridged.T, lower=True, overwrite_a=True)  # in LAPACK's order of rows
            likelihood = self.log_density(held_out, root).mean()
            if likelihood < best:
                break
            best = likelihood
            self.root = root

    def log_density(self, x, root=None):
        """ln p(x) (N,) in nats, x (N, H, W, C) in [-1, 1]; the covariance is root root^T."""
        root = self.root if root is None else root
        white = solve_triangular(root, (x.reshape(len(x), -1) - self.mean).T, lower=True)
        return log_normal(white.T, 0, 1) - np.log(np.diag(root)).sum()
