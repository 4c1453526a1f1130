"""--sigma spectrum: the density against scipy's, its bands, draws against the density, and what it starts from."""

import numpy as np
import pytest
from scipy.fft import dctn
from scipy.stats import multivariate_t

from minivae.noise import Noise, numbered
from minivae.ops import HALF_RANGE, plain
from minivae.spectrum import COLOURS, NU, bands
from minivae.vae import VAE, Widths

SMALL = Widths((4, 5, 6), 9, (6, 5, 4))
SHAPES = [(8, 8, 3), (16, 8, 1)]


def build(rng, shape):
    vae = VAE(shape, 3, plain, np.float64, sigma="spectrum", widths=SMALL)
    for p in vae.params.trained:
        if len(p.shape) == 1:
            p.value += 0.2 * rng.standard_normal(p.shape)
    return vae


def coefficients(x):
    """F x (N, D), by scipy."""
    return (dctn(x, axes=(1, 2), norm="ortho") @ COLOURS[x.shape[3]].T).reshape(len(x), -1)


def scales(vae, z):
    """Of each coefficient (N, D), as the equations in Spectrum's docstring say."""
    head = {p.name.removeprefix("gen/spectrum/"): p.value for p in vae.params.trained}
    h = np.tanh(z @ head["hidden/w"] + head["hidden/b"])
    return np.exp(h @ head["scales/w"] + head["scales/b"])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("train", [True, False])
def test_rec_is_the_log_density_of_a_student_t(rng, shape, train):
    vae = build(rng, shape)
    x, z = rng.uniform(-1, 1, (4, *shape)), rng.standard_normal((4, 3))
    rec = vae.rec(z, x, train)
    f = coefficients(x - vae.likelihood.x_hat)
    for n, scale in enumerate(scales(vae, z)):
        log_p = multivariate_t(shape=np.diag(scale**2), df=NU).logpdf(f[n])
        assert rec[n] == pytest.approx(-log_p - f[n].size / 2 * np.log(2 * np.pi), rel=1e-11)


@pytest.mark.parametrize("colours", COLOURS.values(), ids=len)
def test_the_colour_axes_are_orthonormal(colours):
    np.testing.assert_allclose(colours @ colours.T, np.eye(len(colours)), atol=1e-15)


@pytest.mark.parametrize("shape, count", [((32, 32, 3), 45), ((24, 40, 3), 45), ((16, 8, 1), 14)])
def test_a_band_is_a_ring_of_one_orientation_and_colour(shape, count):
    pool = bands(shape)
    assert len(pool) == count
    np.testing.assert_allclose(pool.sum(1), 1)
    np.testing.assert_array_equal((pool > 0).sum(0), 1)
    p, q, colour = np.indices(shape)
    p, q = p / shape[0], q / shape[1]
    radius = np.hypot(p, q)
    seen = {}
    for band in pool.reshape(-1, *shape) > 0:
        (kind,) = set(zip((p > q)[band].tolist(), colour[band].tolist(), strict=True))
        seen.setdefault(kind, []).append((radius[band].min(), radius[band].max()))
    assert len(seen) == 2 * shape[2]
    for rings in seen.values():
        ends = np.sort(rings, axis=0)
        assert (ends[1:, 0] > ends[:-1, 1]).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_draws_have_the_densitys_moments(rng, shape):
    """Covariance nu/(nu - 2) diag(scale^2), and the weights' mean one: of a Gaussian's tails it would be below."""
    vae, n = build(rng, shape), 20_000
    z = rng.standard_normal((1, 3))
    z_of_each = np.repeat(z, n // 20, 0)
    draws = [vae.draw(z_of_each, Noise(seed, "simulated pixels", numbered(n // 20))) for seed in range(20)]
    x = np.concatenate(draws)
    f = coefficients(x - vae.decode(z)) / scales(vae, z)
    np.testing.assert_allclose(f.mean(0), 0, atol=5 * (NU / (NU - 2) / n) ** 0.5)
    np.testing.assert_allclose((f**2).mean(0), NU / (NU - 2), rtol=0.1)
    assert abs(np.corrcoef(f[:, :8].T) - np.eye(8)).max() < 0.06
    size = f.shape[1]
    assert ((NU + size) / (NU + (f**2).sum(1))).mean() == pytest.approx(1, abs=0.03)


def test_it_starts_from_the_images(rng):
    """b is the log-scale of a Student-t whose scales and degrees of freedom are known."""
    vae = build(rng, (8, 8, 3))
    true = np.exp(rng.uniform(-4, -3, 192))
    t = rng.standard_normal((3000, 192)) * (NU / rng.chisquare(NU, (3000, 1))) ** 0.5 * true
    colour = np.array([0.2, 0, -0.1])
    images = np.round((vae.likelihood.cosines.backward(t) + colour + 1) * HALF_RANGE).clip(0, 255).astype(np.uint8)
    vae.start(images)
    np.testing.assert_allclose(np.exp(vae.likelihood.spectrum.value), true, rtol=0.15)
    np.testing.assert_allclose(np.tanh(vae.likelihood.b.value), colour, atol=0.01)
    x = rng.uniform(-1, 1, (2, 8, 8, 3))
    assert not vae.generator.tconv3.w.value.any()
    first, second = (vae.likelihood.log_scale(rng.standard_normal((2, 3))).copy() for _ in range(2))
    assert not first.any() and not second.any() and np.isfinite(vae.rec(rng.standard_normal((2, 3)), x)).all()
