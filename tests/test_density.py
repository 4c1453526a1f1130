"""The estimators of ln p(x) against a model whose ln p(x) and p(z|x) are known, and the VAE as they see it."""

import contextlib
import io
import json

import numpy as np
import pytest
from scipy import integrate, stats

from minivae.density import baselines, card, estimates
from minivae.density.estimates import Model, Noise
from minivae.errors import UserError
from minivae.images import data
from minivae.images.data import Dataset, Split
from minivae.ops import cuda_ops, numpy_ops
from minivae.training.evaluation import Evaluation
from minivae.training.runs import Config, Run
from minivae.training.trainer import Trainer
from minivae.vae import VAE, Widths

SMALL = Widths((4, 5, 6), 9, (6, 5, 4))


class LinearGaussian:
    """x = w z + 0.5 noise: p(x) and p(z|x) are normal. Everything that estimates.Model has, in closed form."""

    def __init__(self, rng, size=12, latent=3, sigma=0.5):
        self.w, self.sigma = rng.standard_normal((latent, size)), sigma
        self.covariance = np.linalg.inv(np.eye(latent) + self.w @ self.w.T / sigma**2)  # of p(z|x)

    def log_likelihood(self, x, z, gradient=False):
        error = x - z @ self.w
        log_p = -((error / self.sigma) ** 2 + np.log(2 * np.pi * self.sigma**2)).sum(-1) / 2
        return (log_p, error @ self.w.T / self.sigma**2) if gradient else log_p

    def simulate(self, z, noise):
        x = z @ self.w
        return x + self.sigma * noise.normal(x.shape)

    def log_p(self, x):
        covariance = self.w.T @ self.w + self.sigma**2 * np.eye(x.shape[1])
        return stats.multivariate_normal(np.zeros(x.shape[1]), covariance).logpdf(x)

    def posterior(self, x):
        return x @ self.w.T @ self.covariance / self.sigma**2


@pytest.fixture
def linear(rng):
    """(model, x, a q that is wrong in mean and too narrow and wide in places, as an encoder's is)"""
    model = LinearGaussian(rng)
    x = model.simulate(rng.standard_normal((6, 3)), Noise(3, 9))
    sd = np.diag(model.covariance) ** 0.5
    mean = model.posterior(x) + 0.7 * sd * rng.standard_normal((6, 3))
    return model, x, mean, sd**2 * rng.uniform(0.6, 2, (6, 3))


def kl_normal(mean, covariance, other_mean, other):
    inverse, d = np.linalg.inv(other), other_mean - mean
    logs = np.linalg.slogdet(other)[1] - np.linalg.slogdet(covariance)[1]
    return (np.trace(inverse @ covariance) + d @ inverse @ d - len(d) + logs) / 2


def cubature(latent, n):
    """eps whose average is exact for quadratics under N(0, 1): +-sqrt(Z) along each axis."""
    points = np.sqrt(latent) * np.concatenate([np.eye(latent), -np.eye(latent)])
    return np.repeat(points[:, None], n, 1)


def test_three_forms_of_the_bound(linear):
    """E ln p(x,z)/q = E ln p(x|z) - KL(q || p(z)) = ln p(x) - KL(q || p(z|x)), with no sampling error at all."""
    model, x, mean, var = linear
    log_likelihood, kl, log_w = estimates.elbo(model, x, mean, var, cubature(3, 6))
    exact = [kl_normal(m, np.diag(v), c, model.covariance)
             for m, v, c in zip(mean, var, model.posterior(x), strict=True)]
    np.testing.assert_allclose(log_likelihood - kl, log_w.mean(0), rtol=1e-10)
    np.testing.assert_allclose(log_likelihood - kl, model.log_p(x) - exact, rtol=1e-10)
    assert min(exact) > 0.1


def test_importance_bound_rises_to_the_truth(linear):
    model, x, mean, var = linear
    log_w = estimates.importance(model, x, mean, 2 * var, 8000, Noise(0, 1), "IWAE")  # wide enough: bounded weights
    bounds = [estimates.log_mean_exp(log_w.reshape(k, -1)).mean() for k in (1, 20, 1000)]
    truth = model.log_p(x)
    assert bounds[0] < bounds[1] - 0.1 and bounds[1] < bounds[2] < truth.mean() + 0.005
    np.testing.assert_allclose(estimates.log_mean_exp(log_w), truth, atol=0.05)
    assert (estimates.effective_samples(log_w) > 1000).all()


def test_the_true_posterior_needs_one_sample(rng):
    """One latent: p(z|x) is diagonal, all weights are p(x), and every one of them counts."""
    model = LinearGaussian(rng, latent=1)
    x = model.simulate(rng.standard_normal((4, 1)), Noise(3, 9))
    var = np.full((4, 1), model.covariance[0, 0])
    log_w = estimates.importance(model, x, model.posterior(x), var, 5, Noise(0, 1), "")
    np.testing.assert_allclose(log_w, np.tile(model.log_p(x), (5, 1)), rtol=1e-12)
    np.testing.assert_allclose(estimates.effective_samples(log_w), 5)


def test_weights_far_apart_stay_finite():
    np.testing.assert_allclose(estimates.log_mean_exp(np.array([[-1e5], [-1e5 - 800]])), [-1e5 - np.log(2)])
    assert estimates.effective_samples(np.array([[0.0, 3], [-1e5, 3]])).tolist() == [1, 2]


def test_naive_monte_carlo_is_far_below(rng):
    model = LinearGaussian(rng, size=40, latent=6, sigma=0.1)
    x = model.simulate(rng.standard_normal((6, 6)), Noise(3, 9))
    log_w = estimates.importance(model, x, np.zeros((6, 6)), np.ones((6, 6)), 1000, Noise(0, 1), "")
    assert (estimates.log_mean_exp(log_w) < model.log_p(x) - 20).all()
    assert (estimates.effective_samples(log_w) < 5).all()


@pytest.mark.parametrize("base", ["q", "prior"])
def test_ais_finds_the_truth_inside_its_sandwich(rng, base):
    model, z = LinearGaussian(rng, size=6, latent=2, sigma=1), rng.standard_normal((6, 2))
    x = model.simulate(z, Noise(3, 9))
    mean, var = np.zeros((6, 2)), np.ones((6, 2))
    if base == "q":  # as wrong as an encoder's
        mean, var = model.posterior(x) + 0.1, np.tile(0.5 * np.diag(model.covariance), (6, 1))
    found = estimates.anneal(model, x, mean, var, 500, 100, Noise(0, 2), z)
    lower, upper = estimates.log_mean_exp(found["log_w"]), -estimates.log_mean_exp(found["reverse_log_w"])
    np.testing.assert_allclose(lower, model.log_p(x), atol=0.05)
    np.testing.assert_allclose(upper, model.log_p(x), atol=0.05)
    assert found["acceptance"].mean() == pytest.approx(estimates.ACCEPTANCE, abs=0.08)
    assert (estimates.effective_samples(found["log_w"]) > 100).all()


def test_short_ais_is_sandwiched(rng):
    """Few temperatures from the prior: far off, and the two bounds say so without being told the truth."""
    model, z = LinearGaussian(rng, size=40, latent=6, sigma=0.1), rng.standard_normal((6, 6))
    x = model.simulate(z, Noise(3, 9))
    found = estimates.anneal(model, x, np.zeros((6, 6)), np.ones((6, 6)), 8, 15, Noise(0, 2), z)
    lower, upper = estimates.log_mean_exp(found["log_w"]), -estimates.log_mean_exp(found["reverse_log_w"])
    assert (lower < model.log_p(x) - 0.5).all() and (upper > model.log_p(x) + 0.5).all()


@pytest.mark.parametrize("reverse", [False, True])
def test_the_weights_are_unbiased_however_few_the_transitions(rng, reverse):
    """E w = p(x), and in reverse 1/p(x), to a hundredth: that is what makes the bounds bounds.

    Weights after the transition instead of before, a wrong temperature or an inexact acceptance would all show.
    """
    model = LinearGaussian(rng, size=3, latent=2, sigma=1.5)
    x = model.simulate(rng.standard_normal((2, 2)), Noise(3, 9))
    mean = model.posterior(x) + 0.6 * np.diag(model.covariance) ** 0.5
    var, betas = np.tile((0.6 if reverse else 2) * np.diag(model.covariance), (2, 1)), np.array([0, 0.2, 0.7, 1])
    draws = rng.standard_normal((40000, 2, 2))
    if reverse:
        z, betas = model.posterior(x) + draws @ np.linalg.cholesky(model.covariance).T, betas[::-1]
    else:
        z = mean + np.sqrt(var) * draws
    step = np.array([[0.9, 1.1], [0.7, 1.2]])
    kept = step.copy()
    log_w, accepted = estimates.ais(model, x, z, mean, var, betas, step, Noise(0, 2))
    ratio = np.exp(log_w + (1 if reverse else -1) * model.log_p(x))
    error = ratio.std(0) / len(ratio) ** 0.5
    assert error.max() < 0.01 and ratio.std(0).min() > 0.1  # precise, and not precise for want of anything to do
    np.testing.assert_array_less(np.abs(ratio.mean(0) - 1), 4 * error)
    np.testing.assert_array_equal(step, kept)  # no adaptation in a run that is measured
    assert accepted.shape == (2, 2) and (accepted > 0.3).all()


def test_reverse_ais_mirrors_the_forward_run(linear, monkeypatch):
    """The same temperatures with the same steps, in the opposite order."""
    model, x, mean, var = linear
    runs, transition = [], estimates.hamiltonian

    def recorded(model, x, state, mean, var, beta, step, noise):
        runs.append((len(state[1]), beta, step))
        return transition(model, x, state, mean, var, beta, step, noise)

    monkeypatch.setattr(estimates, "hamiltonian", recorded)
    estimates.anneal(model, x, mean, var, 8, 5, Noise(0, 2), model.posterior(x))
    assert [chains for chains, _, _ in runs] == [2] * 5 + [8] * 10
    forward, reverse = runs[5:10], runs[:9:-1]
    for (_, beta, step), (_, other_beta, other_step) in zip(forward, reverse, strict=True):
        assert beta == other_beta
        np.testing.assert_array_equal(step, other_step)
    assert 0 < forward[0][1] and forward[-1][1] < 1
    assert (np.ptp([step for _, _, step in forward], 0) > 0).all()  # adapted


@pytest.mark.filterwarnings("error")
def test_a_trajectory_that_leaves_the_numbers_is_rejected(rng):
    class Cliff(LinearGaussian):
        def log_likelihood(self, x, z, gradient=False):
            value, g = super().log_likelihood(x, z, gradient=True)
            return np.where(np.abs(z).max(-1) > 3, np.nan, value), g

    model = Cliff(rng)
    x, z = model.simulate(np.zeros((4, 3)), Noise(3, 9)), np.zeros((2, 4, 3))
    state = z, *model.log_likelihood(x, z, gradient=True)
    moved, rate = estimates.hamiltonian(model, x, state, z[0], z[0] + 1, 1.0, np.full((4, 3), 50.0), Noise(0, 2))
    assert (rate == 0).all()
    for new, old in zip(moved, state, strict=True):
        np.testing.assert_array_equal(new, old)


def test_hamiltonian_transition_leaves_its_density_alone(rng):
    """From exact draws of p(z|x) to exact draws, at a step that rejects many: energy or acceptance wrong would show."""
    model = LinearGaussian(rng)
    x = model.simulate(rng.standard_normal((1, 3)), Noise(3, 9))
    z = rng.multivariate_normal(model.posterior(x)[0], model.covariance, 20000)[:, None]
    base, step = (np.full((1, 3), 0.3), np.full((1, 3), 2.0)), 1.4 * np.diag(model.covariance)[None] ** 0.5
    state, rates, noise = (z, *model.log_likelihood(x, z, gradient=True)), [], Noise(0, 4)
    for _ in range(3):
        state, rate = estimates.hamiltonian(model, x, state, *base, 1.0, step, noise)
        rates.append(rate.mean())
    assert 0.1 < np.mean(rates) < 0.9
    white = (state[0][:, 0] - model.posterior(x)) @ np.linalg.inv(np.linalg.cholesky(model.covariance)).T
    np.testing.assert_allclose(white.mean(0), 0, atol=0.035)
    np.testing.assert_allclose(np.cov(white.T), np.eye(3), atol=0.05)
    np.testing.assert_array_equal(state[1], model.log_likelihood(x, state[0]))


@pytest.mark.parametrize("beta", [0.0, 0.6, 1.0])
def test_a_fine_trajectory_keeps_its_energy(rng, beta):
    """Only with the force that is the energy's gradient; a wrong one is still a valid chain, but a slow one."""
    model, z = LinearGaussian(rng, sigma=2), 3 + rng.standard_normal((50, 6, 3))
    x = model.simulate(z[0], Noise(3, 9))
    state, step = (z, *model.log_likelihood(x, z, gradient=True)), np.full((6, 3), 0.01)
    base = np.full((6, 3), -1.0), np.full((6, 3), 0.5)
    rate = estimates.hamiltonian(model, x, state, *base, beta, step, Noise(0, 4))[1]
    assert rate.min() > 0.99


def test_temperatures():
    betas = estimates.temperatures(10)
    assert len(betas) == 11 and np.diff(betas)[[0, -1]].max() < np.diff(betas)[5] / 5
    assert betas[0] == 0 and betas[-1] == 1 and (np.diff(betas) > 0).all()


def test_fit_finds_the_best_diagonal_gaussian(rng):
    """For a normal posterior: its mean, and the inverse diagonal of its precision. The prior is a quarter of that."""
    model = LinearGaussian(rng, sigma=2)
    x = model.simulate(rng.standard_normal((8, 3)), Noise(3, 9))
    truth, best = model.posterior(x), np.tile(1 / np.diag(np.linalg.inv(model.covariance)), (8, 1))
    mean, var = truth + rng.choice([-1, 1], (8, 3)), np.full((8, 3), 0.6)

    def excess(mean, var):
        """The ELBO's distance from its best value."""
        return np.mean([kl_normal(m, np.diag(v), t, model.covariance) - kl_normal(t, np.diag(b), t, model.covariance)
                        for m, v, t, b in zip(mean, var, truth, best, strict=True)])

    fitted = estimates.fit_posterior(model, x, mean, var, Noise(0, 5))
    assert excess(mean, var) > 3 and excess(*fitted) < 0.03
    np.testing.assert_allclose(fitted[0], truth, atol=0.15)
    np.testing.assert_allclose(fitted[1].mean(0), best[0], rtol=0.1)


def test_latent_summaries(rng):
    """q(z|x) = N(x, 0.3) in one latent and the prior in another, x ~ N(0, 0.7): q(z) is the prior, KL 0."""
    mean = rng.standard_normal((800, 2))
    mean = (mean - mean.mean(0)) / mean.std(0) * [0.7**0.5, 0.01]  # these moments to the last digit
    var = np.tile([0.3, 1.0], (800, 1))
    assert estimates.active_units(mean).tolist() == [True, False]
    lower, upper = estimates.aggregate_kl(mean, var, Noise(0, 6))
    np.testing.assert_allclose([lower, upper], 0, atol=0.03)
    shifted = estimates.aggregate_kl(mean + [2, 0], var, Noise(0, 6))
    np.testing.assert_allclose(shifted, 2, atol=0.1)  # |shift|^2 / 2
    kl = estimates.kl_per_latent(np.array([[1.0, 0]]), np.array([[1.0, 4]]))
    np.testing.assert_allclose(kl, [[0.5, (4 - 1 - np.log(4)) / 2]])


def test_full_gaussian(rng, monkeypatch):
    """It finds the density that made the images; its log density is that of its own mean and covariance, by scipy."""
    monkeypatch.setattr(baselines, "BLOCK", 700)  # several blocks, the last one shorter
    axes = rng.standard_normal((12, 12)) * 8
    x = (120 + rng.standard_normal((5000, 12)) @ axes).clip(0, 255).round().astype(np.uint8).reshape(-1, 2, 2, 3)
    gaussian, test = baselines.FullGaussian(x[:4000]), estimates.scaled(x[4000:])
    flat, covariance = test.reshape(-1, 12), gaussian.root @ gaussian.root.T
    expected = stats.multivariate_normal(gaussian.mean, covariance).logpdf(flat)
    np.testing.assert_allclose(gaussian.log_density(test), expected, rtol=1e-8)
    fitted = estimates.scaled(x[:4000].reshape(-1, 12)[np.arange(4000) % 10 > 0])
    ridge = covariance - np.cov(fitted.T, bias=True)
    np.testing.assert_allclose(ridge, ridge[0, 0] * np.eye(12), atol=1e-10)
    assert 0 < ridge[0, 0] < 1e-4  # a few grey levels' variance: so many images of so few pixels need no more
    truth = stats.multivariate_normal(np.full(12, 120 / 127.5 - 1), axes.T @ axes / 127.5**2).logpdf(flat)
    assert expected.mean() == pytest.approx(truth.mean(), abs=0.1)


def test_the_full_gaussians_ridge_makes_few_images_enough(rng):
    """Fewer images than pixels: the covariance has no inverse, and held-out images ask for a large ridge."""
    x = rng.integers(100, 156, (40, 4, 4, 3), np.uint8)
    gaussian, test = baselines.FullGaussian(x), estimates.scaled(rng.integers(100, 156, (200, 4, 4, 3), np.uint8))
    diagonal = stats.norm.logpdf(test, gaussian.mean.reshape(4, 4, 3), test.std()).sum((1, 2, 3)).mean()
    assert gaussian.log_density(test).mean() == pytest.approx(diagonal, abs=8)


def test_bits_of_known_densities():
    """Uniform over the 256 levels is 8 bits; and 2^-bits of the levels sums to one, as probabilities do."""
    assert estimates.bits_per_dim(baselines.uniform(7), 7) == pytest.approx(8)
    levels = np.arange(-200, 456) / 127.5 - 1
    bits = estimates.bits_per_dim(stats.norm.logpdf(levels, 0.1, 0.2), 1)
    assert (2.0**-bits).sum() == pytest.approx(1, abs=1e-6)


def test_estimated_density_integrates_to_one(rng):
    model = LinearGaussian(rng, size=1, latent=2)
    grid = np.linspace(-12, 12, 401)[:, None]
    mean, var = model.posterior(grid), np.tile(2 * np.diag(model.covariance), (401, 1))
    log_w = estimates.importance(model, grid, mean, var, 400, Noise(0, 1), "")
    assert integrate.trapezoid(np.exp(estimates.log_mean_exp(log_w)), grid[:, 0]) == pytest.approx(1, abs=0.01)


# The VAE as the estimators see it


def small_vae(ops, rng, sigma="0.4"):
    vae = VAE((8, 8, 3), 3, ops, np.float64, widths=SMALL, sigma=sigma)
    x, eps = rng.uniform(-1, 1, (7, 8, 8, 3)), rng.standard_normal((7, 3))
    for p in vae.params.trained:
        if len(p.shape) == 1:
            p.value += 0.2 * rng.standard_normal(p.shape)
    for _ in range(100):
        vae.forward(x, eps)  # moves the statistics of test mode
    return vae, x


@pytest.mark.parametrize("sigma", ["0.4", "optimal", "learned", "pixel"])
def test_model_is_the_density_and_gradient_of_the_decoder(ops, rng, check, sigma):
    vae, x = small_vae(ops, rng, sigma)
    model, z, weight = Model(vae, 4), rng.standard_normal((2, 7, 3)), rng.standard_normal((2, 7))
    log_p, gradient = model.log_likelihood(x, z, gradient=True)
    for k in range(2):
        a = vae.generator.forward(z[k], train=False)
        expected = stats.norm.logpdf(x, vae.likelihood.mean(a), np.broadcast_to(vae.likelihood.var(a), x.shape) ** 0.5)
        np.testing.assert_allclose(log_p[k], expected.sum((1, 2, 3)), rtol=1e-10)
    check(lambda: np.vdot(model.log_likelihood(x, z), weight), {"z": (z, gradient * weight[..., None])})


@pytest.mark.parametrize("sigma", ["0.4", "optimal", "learned", "pixel"])
def test_decoder_density_integrates_to_one(ops, rng, sigma):
    """Along one value of the image, the others at x_hat, where each contributes its density's peak."""
    vae, _ = small_vae(ops, rng, sigma)
    z = rng.standard_normal((1, 1, 3))
    a = vae.generator.forward(z[0], train=False)
    x_hat, var = vae.likelihood.mean(a)[0].copy(), np.broadcast_to(vae.likelihood.var(a), (1, 8, 8, 3))[0].copy()
    grid = np.linspace(-12, 12, 2001)
    x = np.repeat(x_hat[None], len(grid), 0)
    x[:, 2, 3, 1] = grid
    rest = -0.5 * (np.log(2 * np.pi * var).sum() - np.log(2 * np.pi * var[2, 3, 1]))
    log_p = Model(vae, 667).log_likelihood(x, np.repeat(z, len(grid), 1))[0]
    assert integrate.trapezoid(np.exp(log_p - rest), grid) == pytest.approx(1, rel=1e-6)


def all_estimates(vae, x, eps, batch):
    """Everything that runs the VAE, with an image's noise tied to the image."""
    model = Model(vae, batch)
    mean, var = model.posterior(x)
    likelihood, kl, log_w = estimates.elbo(model, x, mean, var, eps)
    return mean, var, likelihood, kl, log_w.T, model.log_likelihood(x, eps, gradient=True)[1].swapaxes(0, 1)


@pytest.mark.parametrize("sigma", ["1", "optimal"])
def test_neither_batch_size_nor_order_matters(ops, rng, sigma):
    """With batch norm in train mode, or sigma from the batch, both would."""
    vae, x = small_vae(ops, rng, sigma)
    eps, order, moving = rng.standard_normal((3, 7, 3)), rng.permutation(7), vae.params.moving_statistics.copy()
    whole = all_estimates(vae, x, eps, 64)
    for batch in (1, 2, 5, 7):
        for mine, expected in zip(all_estimates(vae, x, eps, batch), whole, strict=True):
            np.testing.assert_allclose(mine, expected, rtol=1e-9, atol=1e-9)
    for mine, expected in zip(all_estimates(vae, x[order], eps[:, order], 4), whole, strict=True):
        np.testing.assert_allclose(mine, expected[order], rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(vae.params.moving_statistics, moving)


def test_ais_does_not_depend_on_the_batch_size(ops, rng):
    vae, x = small_vae(ops, rng)
    base = np.zeros((7, 3)), np.ones((7, 3))
    found = [estimates.anneal(Model(vae, batch), x, *base, 4, 3, Noise(0, 1)) for batch in (5, 64)]
    np.testing.assert_allclose(found[0]["log_w"], found[1]["log_w"], rtol=1e-7)


def test_ais_sandwich_of_a_vae(ops, rng, monkeypatch):
    monkeypatch.setattr(estimates, "FIT_STEPS", 50)
    vae, _ = small_vae(ops, rng)
    model, z = Model(vae, 1024), rng.standard_normal((4, 3))
    x = model.simulate(z, Noise(0, 7))
    q = estimates.fit_posterior(model, x, *model.posterior(x), Noise(0, 8))
    found = estimates.anneal(model, x, *q, 16, 20, Noise(0, 9), z)
    lower, upper = estimates.log_mean_exp(found["log_w"]), -estimates.log_mean_exp(found["reverse_log_w"])
    naive = estimates.log_mean_exp(estimates.importance(model, x, 0 * z, 1 + 0 * z, 6000, Noise(0, 10), ""))
    log_w = estimates.elbo(model, x, *q, rng.standard_normal((100, 4, 3)))[2]
    np.testing.assert_allclose(lower, naive, atol=0.2)  # three latents and a wide sigma: here naive sampling arrives
    np.testing.assert_allclose(upper, naive, atol=0.2)
    assert log_w.mean() < lower.mean() - 0.05


def test_simulated_images_have_the_decoders_moments(ops, rng):
    vae, _ = small_vae(ops, rng, "pixel")
    z = np.repeat(rng.standard_normal((1, 3)), 4000, 0)
    x = Model(vae, 1000).simulate(z, Noise(0, 11))
    few = [Model(vae, batch).simulate(z[:7], Noise(0, 12)) for batch in (3, 64)]
    np.testing.assert_allclose(few[0], few[1])
    a = vae.generator.forward(z[:1], train=False)
    np.testing.assert_allclose(x.mean(0), vae.likelihood.mean(a)[0], atol=0.1)
    np.testing.assert_allclose(x.var(0), vae.likelihood.var(a)[0], rtol=0.15)


def test_noise_is_reproducible_and_never_repeats():
    first, second, other = Noise(0, 1), Noise(0, 1), Noise(0, 2)
    a, b = first.normal((5, 3)), first.normal((5, 3))
    np.testing.assert_array_equal(a, second.normal((5, 3)))
    assert not np.intersect1d(a, b).size and not np.intersect1d(a, other.normal((5, 3))).size


@pytest.mark.parametrize("sigma", ["0.4", "pixel"])
def test_the_model_on_the_gpu(cuda, rng, sigma):
    """The kernels give the estimators what the NumPy operations do."""
    x, z = rng.uniform(-1, 1, (5, 8, 8, 3)), rng.standard_normal((2, 5, 3))
    found = []
    for ops in (numpy_ops, cuda_ops):
        model = Model(VAE((8, 8, 3), 3, ops, np.float64, widths=SMALL, sigma=sigma), 4)
        found.append([*model.posterior(x), *model.log_likelihood(x, z, gradient=True),
                      model.simulate(z[0], Noise(0, 1))])
    for expected, mine in zip(*found, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-9, atol=1e-9)


# The card


def make_run(folder, ops, rng, sigma=1.0):
    """An untrained run on 60 images of noise, its test statistics moved by a few batches."""
    images = [rng.integers(0, 256, (n, 8, 8, 1), np.uint8) for n in (60, 12)]
    dataset = Dataset("noise", *(Split(im, None, f"sha-{len(im)}") for im in images), [])
    config = Config(data="noise", steps=1, batch_size=16, latent=2, lr=1e-3, seed=0, kl="sample", log_every=10,
                    eval_every=10, checkpoint_every=10, shape=(8, 8, 1), train_sha256="", test_sha256="", sigma=sigma)
    trainer = Trainer(config, dataset.train.images, ops, widths=SMALL)
    for _ in range(20):
        trainer.step()
    return Run(folder, config), trainer, dataset


SETTINGS = {"images": 9, "importance": 20, "ais_images": 3, "ais_chains": 3, "ais_steps": 4, "seed": 0}


@pytest.fixture
def quick(monkeypatch):
    """Few steps for fits of q, few draws from the prior: what a card says of a model that has learned nothing."""
    be_quick(monkeypatch)


def be_quick(patch):
    patch.setattr(estimates, "FIT_STEPS", 40)
    patch.setattr(card, "NAIVE", 100)


@pytest.fixture(scope="module")
def carded(ops, tmp_path_factory):
    """(trainer, data set, card, what it printed, its directory) at sigma 1."""
    folder, printed = tmp_path_factory.mktemp("card"), io.StringIO()
    run, trainer, dataset = make_run(folder, ops, np.random.default_rng(7))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        be_quick(patch)
        found = card.evaluate(run, trainer.vae, dataset, trainer.step_count, **SETTINGS)
    return trainer, dataset, found, printed.getvalue(), folder


def test_card(carded):
    trainer, dataset, found, printed, folder = carded
    assert json.loads((folder / "density.json").read_text()) == found
    assert (folder / "density.png").stat().st_size > 10000
    rec, kl = Evaluation(trainer.vae, data.test_subset(dataset.test.images), 0).losses()
    assert found["reference_protocol"]["loss"] == pytest.approx(rec + kl)
    nats = {name: row["nats_per_image"] for name, row in (found["bounds"] | found["annealed"]).items()}
    assert nats["log-likelihood by AIS"] == pytest.approx(nats["ELBO, 10 draws"] + found["gap"]["total"])
    assert found["gap"]["total"] == pytest.approx(found["gap"]["approximation"] + found["gap"]["amortization"])
    assert found["bounds"]["uniform density"]["bits_per_dim"] == pytest.approx(8)
    assert found["test"]["sha256"] == "sha-12"
    assert abs(found["simulated"]["gap"]) < 3
    assert [line for line in printed.splitlines() if "log-likelihood" in line and "ELBO," in line] == []
    assert f"{nats['log-likelihood by AIS']:.2f}" in printed
    assert found["refitted_sigma"]["gain"] > 0 and found["refitted_sigma"]["sigma"] < 1


def test_every_row_says_what_it_is(carded):
    """Only a model's exact density is called exact, and "log-likelihood" names AIS's rows alone."""
    _, _, found, _, _ = carded
    for name, row in (found["bounds"] | found["annealed"]).items():
        exact = name.startswith(("uniform", "full Gaussian"))
        assert row["kind"] == ("exact" if exact else "lower bound" if "ELBO" in name else "lower bound on average")
        assert ("log-likelihood" in name) == ("AIS" in name)
    assert found["simulated"]["upper"]["kind"] == "upper bound on average"


def test_card_of_a_learned_sigma_is_the_same_again(ops, rng, quick, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(card, "draw", lambda path, card: None)
    run, trainer, dataset = make_run(tmp_path, ops, rng, "learned")
    found = card.evaluate(run, trainer.vae, dataset, trainer.step_count, **SETTINGS)
    assert card.evaluate(run, trainer.vae, dataset, trainer.step_count, **SETTINGS) == found
    value = np.exp(trainer.vae.likelihood.log_sigma.value[0])
    assert found["sigma_value"] == pytest.approx(value) and f"sigma learned ({value:.4f})" in capsys.readouterr().out
    assert "refitted_sigma" not in found


def test_card_of_one_image(ops, rng, quick, tmp_path, capsys):
    """The least that can be asked for; one image has no standard error."""
    run, trainer, dataset = make_run(tmp_path, ops, rng, "pixel")
    card.evaluate(run, trainer.vae, dataset, trainer.step_count, 1, 1, 1, 1, 1, 0)
    found = json.loads((tmp_path / "density.json").read_text(), parse_constant=pytest.fail)  # no NaN
    assert found["bounds"]["IWAE-1"]["standard_error"] is None and found["sigma_value"] is None
    assert "nan" not in capsys.readouterr().out


def test_standard_error_over_images(rng):
    values = rng.standard_normal(50)
    row = card.estimate(values, 12, "exact")
    assert row["standard_error"] == pytest.approx(stats.sem(values)) and row["images"] == 50
    assert row["nats_per_image"] == pytest.approx(values.mean())


def test_refitted_sigma_is_the_elbo_of_a_model_with_it(carded):
    trainer, dataset, found, _, _ = carded
    kept = trainer.vae.likelihood.log_sigma.value.copy()
    trainer.vae.likelihood.log_sigma.value[...] = np.log(found["refitted_sigma"]["sigma"])
    model, x = Model(trainer.vae, 4), estimates.scaled(data.test_subset(dataset.test.images)[:9])
    mean, var = model.posterior(model.device(x))
    eps = Noise(0, 0).normal((card.DRAWS, 9, 2))
    likelihood, kl, _ = estimates.elbo(model, model.device(x), mean, var, eps)
    trainer.vae.likelihood.log_sigma.value[...] = kept
    assert found["refitted_sigma"]["elbo"] == pytest.approx((likelihood - kl).mean(), abs=1.5)


def test_overlap_is_refused(ops, rng, tmp_path):
    run, trainer, dataset = make_run(tmp_path, ops, rng)
    dataset.train.images[59] = dataset.test.images[11]
    with pytest.raises(UserError, match="1 of 12 test images occur in the training set, image 11 first"):
        card.evaluate(run, trainer.vae, dataset, trainer.step_count, **SETTINGS)
    assert not list(tmp_path.iterdir())


def test_a_card_that_could_not_be_written_is_not_computed(ops, rng, quick, tmp_path, capsys):
    run, trainer, dataset = make_run(tmp_path / "gone", ops, rng)
    with pytest.raises(UserError, match="cannot write .*gone"):
        card.evaluate(run, trainer.vae, dataset, trainer.step_count, 2, 1, 1, 1, 1, 0)
    assert capsys.readouterr().out == ""


def test_a_collapsed_posterior_is_called_so():
    found = {}
    card.latents(found, np.zeros((50, 3)), np.ones((50, 3)), 0)
    assert found["warning"].startswith("the posterior has collapsed: q(z|x) ignores the image in 3 of 3")
    mean = np.random.default_rng(0).standard_normal((50, 3)) * [1, 1, 0]
    card.latents(found, mean, np.full((50, 3), 0.1), 0)
    assert found["warning"].startswith("the posterior has collapsed in part")
    assert found["latents"]["active"] == [True, True, False]
