"""Densities of images that need no network, to compare a VAE's with: exact, in nats per image.

x (N, H, W, C) are images in [-1, 1]; those that a density is fitted to have dequantized pixels, as
those that it is asked about have.
"""

import math

import numpy as np
from scipy.fft import dctn
from scipy.linalg import cholesky, solve_triangular
from scipy.special import gammaln, logsumexp, softmax

from minivae.density.estimates import log_normal
from minivae.images.stream import MEMORY_FRACTION, memory
from minivae.ops import HALF_RANGE
from minivae.spectrum import COLOURS

BLOCK = 1000  # images whose products go into the covariance at once
NU = 4  # degrees of freedom of Student's t; from 2 to 8 they are level on SVHN
EM_STEPS = 20


def uniform(size):
    """ln p(x) of `size` values, each evenly spread over 256 grey levels: 8 bits per dimension."""
    return size * math.log(HALF_RANGE / 256)


def fits_in_memory(size):
    """Whether the covariance of `size` values takes at most a quarter of the memory."""
    return 8 * size**2 <= MEMORY_FRACTION * memory()


class FullGaussian:
    """One Gaussian with a full covariance.

    The covariance is S + ridge I. S is that of nine tenths of the images, float64 on the host. The
    ridge is the one under which the last tenth is likeliest: it is doubled, from a quarter of a
    grey level's variance, until the likelihood falls.
    """

    def __init__(self, x, progress=iter):
        held_out = x[::10]
        fitted = x[np.arange(len(x)) % 10 > 0]
        size = x[0].size
        total = np.zeros(size)
        covariance = np.zeros((size, size))
        for start in range(0, len(fitted), BLOCK):
            block = fitted[start : start + BLOCK].reshape(-1, size).astype(np.float64)
            total += block.sum(0)
            covariance += block.T @ block
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
        """ln p(x) (N,) in nats; the covariance is root root^T."""
        root = self.root if root is None else root
        white = solve_triangular(root, (x.reshape(len(x), -1) - self.mean).T, lower=True)
        return log_normal(white.T, 0, 1) - np.log(np.diag(root)).sum()


class StudentMixture:
    """K multivariate Student-t densities of F (x - mean), each with scales of its own, fitted by EM.

        p(x) = sum_k a_k t(f; v_k)      f = F (x - mean)      d_k = sum f^2 / v_k
        ln t = ln G((nu + D)/2) - ln G(nu/2) - (D/2) ln(nu pi) - sum ln(v_k)/2
               - (nu + D)/2 ln(1 + d_k/nu)
        E: r_k = a_k t_k / p      w_k = (nu + D)/(nu + d_k)
        M: a_k = mean r_k         v_k = sum_n r_k w_k f^2 / sum_n r_k

    F is orthonormal, the cosine transform of rows and columns and fixed colour axes, so p is a
    density of x too. a_k (K,), v_k (K, D), f (N, D), r_k and w_k (N, K), G the gamma function. EM
    starts with images in K equal groups, by how much they differ from the mean.
    Source: Peel and McLachlan, "Robust mixture modelling using the t distribution", 2000.
    """

    def __init__(self, x, count, progress=iter):
        self.mean = x.mean(0, dtype=np.float64)
        squares = self._squares(x).astype(np.float32)
        contrast = (squares / squares.mean(0)).sum(1)
        group = contrast.argsort().argsort() * count // len(x)
        self._fit(squares, np.eye(count)[group])
        for _ in progress(range(EM_STEPS)):
            log_p, weight = self._parts(squares)
            self._fit(squares, softmax(log_p, 1), weight)

    def log_density(self, x):
        """ln p(x) (N,) in nats."""
        return logsumexp(self._parts(self._squares(x))[0], 1)

    def _squares(self, x):
        f = dctn(x - self.mean, axes=(1, 2), norm="ortho") @ COLOURS[x.shape[3]].T
        return f.reshape(len(x), -1) ** 2

    def _fit(self, squares, r, weight=1):
        self.log_a = np.log(r.mean(0))
        self.v = (r * weight).T.astype(squares.dtype) @ squares / r.sum(0)[:, None]

    def _parts(self, squares):
        """ln(a_k t_k) and w_k."""
        size = squares.shape[1]
        d = squares @ (1 / self.v).T.astype(squares.dtype)
        log_t = (gammaln((NU + size) / 2) - gammaln(NU / 2) - size / 2 * math.log(NU * math.pi)
                 - np.log(self.v).sum(1) / 2 - (NU + size) / 2 * np.log1p(d / NU))
        return self.log_a + log_t, (NU + size) / (NU + d)
