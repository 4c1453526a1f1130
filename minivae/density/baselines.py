"""Densities of images that need no network, for a VAE's to be compared with. Both are exact, in nats per image."""

import math

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from minivae.density.estimates import log_normal, progress, scaled

BLOCK = 1000  # images whose products go into the covariance at once


def uniform(size):
    """ln p(x) of `size` values, each evenly spread over the 256 grey levels of [-1, 1]: 8 bits per dimension."""
    return size * math.log(127.5 / 256)


class FullGaussian:
    """One Gaussian with a full covariance, fitted to training images (N, H, W, C) uint8; its likelihood is exact.

    The covariance is S + ridge: S of nine tenths of the images (float64, on the host), and the ridge that makes the
    last tenth likeliest, found by doubling it from a quarter of a grey level's variance until they get less likely.
    """

    def __init__(self, images):
        held, fitted = scaled(images[::10]), images[np.arange(len(images)) % 10 > 0]
        total, products = 0, 0
        for start in range(0, len(fitted), BLOCK):
            x = scaled(fitted[start : start + BLOCK]).reshape(-1, held[0].size)
            total, products = total + x.sum(0), products + x.T @ x
        self.mean, best = total / len(fitted), -math.inf
        s, grey = products / len(fitted) - np.outer(self.mean, self.mean), 1 / 127.5**2 / 12
        for power in progress(range(-2, 20), "full Gaussian"):
            root = cholesky(s + 2.0**power * grey * np.eye(len(s)), lower=True)
            likelihood = self.log_density(held, root).mean()
            if likelihood < best:
                break
            best, self.root = likelihood, root

    def log_density(self, x, root=None):
        """ln p(x) (N,) in nats, x (N, H, W, C) in [-1, 1]; the covariance is root root^T."""
        root = self.root if root is None else root
        white = solve_triangular(root, (x.reshape(len(x), -1) - self.mean).T, lower=True)
        return log_normal(white.T, 0, 1) - np.log(np.diag(root)).sum()
