"""The decoder's variance in all its forms: densities, gradients end to end, training and test mode."""

import numpy as np
import pytest
from scipy import stats

from minivae.ops import SIGMA_FLOOR, plain
from minivae.sigmas import FITTED_SIGMAS
from minivae.vae import VAE, Widths

SIGMAS = [1.0, 0.3, *FITTED_SIGMAS]
GAUSSIANS = SIGMAS[:-1]  # test_spectrum.py has the density of "spectrum"
SMALL = Widths((4, 5, 6), 9, (6, 5, 4))
SHAPE = (8, 8, 3)


def build(ops, rng, sigma, **options):
    """A small model in float64, its dull starting values (1, 0, 0) moved off, with a batch and its noise."""
    vae = VAE(SHAPE, 3, ops, np.float64, sigma=sigma, widths=SMALL, **options)
    for p in vae.params.trained:
        if len(p.shape) == 1:
            p.value += 0.2 * rng.standard_normal(p.shape)
    return vae, rng.uniform(-1, 1, (5, *SHAPE)), rng.standard_normal((5, 3))


def log_density(vae, x, var):
    """ln p(x|z) of the last forward, by scipy."""
    return stats.norm.logpdf(x, vae.likelihood.x_hat, np.broadcast_to(var, x.shape) ** 0.5).sum((1, 2, 3))


@pytest.mark.parametrize("kl", ["sample", "analytic"])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_gradients_end_to_end(ops, rng, check, sigma, kl):
    """Every parameter, the variance's own and all those below it, of the loss that training minimizes."""
    vae, x, eps = build(ops, rng, sigma, kl=kl)

    def loss():
        return np.add(*vae.forward(x, eps)).mean()

    loss()
    vae.backward()
    check(loss, {p.name: (p.value, p.grad.copy()) for p in vae.params.trained})
    assert ("gen/log_sigma" in [p.name for p in vae.params.trained]) == (sigma == "learned")


@pytest.mark.parametrize("sigma", SIGMAS)
def test_layer_gradients_in_both_modes(ops, rng, check, sigma):
    """da against finite differences of mean rec, which in test mode of "optimal" holds sigma where it was."""
    vae, x, eps = build(ops, rng, sigma)
    vae.forward(x, eps)
    likelihood = vae.likelihood
    a = rng.standard_normal((*x.shape[:3], len(likelihood.b.value)))
    for train in (True, False):

        def f(train=train):
            return likelihood.forward(a, x, eps, train).mean()

        f()
        check(f, {"a": (a, likelihood.backward().copy())})


@pytest.mark.parametrize("sigma", GAUSSIANS)
def test_rec_is_the_log_density(ops, rng, sigma):
    vae, x, eps = build(ops, rng, sigma)
    for _ in range(30):
        vae.forward(x, eps)  # moves "optimal"
    rec = vae.forward(x, eps, train=False)[0]
    var = vae.likelihood.var(vae.generator.forward(vae.posterior.z, train=False))
    expected = -log_density(vae, x, var) - x[0].size / 2 * np.log(2 * np.pi)
    np.testing.assert_allclose(rec, expected, rtol=1e-11)


def test_sigma_1_is_half_the_squared_error_bit_for_bit(ops, rng):
    x, a, b = (rng.uniform(-1, 1, s).astype(np.float32) for s in ((4, 8, 8, 3), (4, 8, 8, 3), 3))
    x_hat, rec, da, db = np.empty_like(x), np.empty(4, np.float32), np.empty_like(x), np.empty(3, np.float32)
    ops.tanh_gaussian(a, b, x, np.zeros(1, np.float32), 0.25, x_hat, rec, da, db)
    flat = (x_hat - x).reshape(4, -1)
    if ops is not plain:  # whose sum is in another order
        np.testing.assert_array_equal(rec, np.einsum("ni,ni->n", flat, flat) * np.float32(0.5))
    np.testing.assert_array_equal(da, (x_hat - x) * (1 - x_hat**2) * np.float32(0.25))


def test_optimal_minimizes_the_batch(ops, rng):
    """sigma^2 is the mean squared error: mean rec D/2 ln(mse) + D/2, and more at any other sigma."""
    vae, x, eps = build(ops, rng, "optimal")
    rec = vae.forward(x, eps)[0]
    mse, d = np.mean((x - vae.likelihood.x_hat) ** 2), x[0].size
    assert rec.mean() == pytest.approx(d / 2 * np.log(mse) + d / 2, rel=1e-12)
    for other in (0.99 * mse, 1.01 * mse):
        assert -log_density(vae, x, other).mean() - d / 2 * np.log(2 * np.pi) > rec.mean()


def test_optimal_keeps_a_moving_sigma_for_test_mode(ops, rng):
    vae, x, eps = build(ops, rng, "optimal")
    moving = vae.likelihood.log_sigma
    assert moving in vae.params.state
    vae.forward(x, eps)
    first = np.log(np.mean((x - vae.likelihood.x_hat) ** 2)) / 2
    assert moving.value[0] == pytest.approx(0.01 * first, rel=1e-12)
    rec = vae.forward(x, eps, train=False)[0]
    assert moving.value[0] == pytest.approx(0.01 * first, rel=1e-12)
    alone = vae.forward(x[:1], eps[:1], train=False)[0]
    np.testing.assert_allclose(alone, rec[:1], rtol=1e-12)  # no batch statistic left in test mode


def test_a_perfect_fit_meets_the_floor(ops):
    log_sigma = np.array([np.nan])
    ops.fit_sigma(np.zeros(4), 12, log_sigma)
    assert np.exp(log_sigma[0]) == pytest.approx(SIGMA_FLOOR)


def test_learned_sigma_falls_to_the_error(ops, rng):
    """Descent on ln sigma alone ends where sigma^2 is the mean squared error."""
    vae, x, eps = build(ops, rng, "learned")
    for _ in range(60):
        vae.forward(x, eps)
        vae.likelihood.log_sigma.value -= vae.likelihood.log_sigma.grad / (2 * x[0].size)
    mse = np.mean((x - vae.likelihood.x_hat) ** 2)
    assert np.exp(2 * vae.likelihood.log_sigma.value[0]) == pytest.approx(mse, rel=1e-9)


@pytest.mark.filterwarnings("error")
def test_extreme_pixel_variances_stay_finite(ops):
    a = np.array([[0, 0, 0, 1e30, -1e30, -1e4, 0, 1e4]], np.float32).reshape(1, 1, 1, 8)
    x = np.full((1, 1, 1, 4), 0.5, np.float32)
    x_hat, rec, da, db = np.empty_like(x), np.empty(1, np.float32), np.empty_like(a), np.empty(8, np.float32)
    ops.tanh_gaussian_pixel(a, np.zeros(8, np.float32), x, 1, x_hat, rec, da, db)
    assert all(np.isfinite(v).all() for v in (x_hat, rec, da, db))
    np.testing.assert_array_equal(db, da.ravel())


def test_the_mean_of_both_heads(ops, rng):
    """Sampling takes the first head only."""
    vae, x, eps = build(ops, rng, "pixel")
    vae.forward(x, eps, train=False)
    x_hat = vae.likelihood.x_hat.copy()  # decode writes where forward did
    np.testing.assert_array_equal(vae.decode(vae.posterior.z), x_hat)
