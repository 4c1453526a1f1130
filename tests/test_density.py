"""The estimators of ln p(x) against a model whose ln p(x) and p(z|x) are known, and the VAE as they see it."""

import contextlib
import io
import json
import re
import sys
from types import SimpleNamespace

import density
import numpy as np
import pytest
import readme
from scipy import fft, integrate, special, stats

from minivae.density import baselines, card, estimates, report, score
from minivae.density.estimates import Model
from minivae.errors import UserError
from minivae.images import data, given
from minivae.images.data import Dataset, Split
from minivae.noise import Noise, numbered
from minivae.ops import cuda_ops, numpy_ops
from minivae.options import DENSITY
from minivae.training.evaluation import Evaluation
from minivae.training.runs import Run
from minivae.training.statistics import in_place
from minivae.vae import VAE, Widths

SMALL = Widths((4, 5, 6), 9, (6, 5, 4))


def noise_of(count, seed):
    """Noise of `count` images."""
    return Noise(seed, "AIS", numbered(count))


class LinearGaussian:
    """x = w z + 0.5 noise: p(x) and p(z|x) are normal. Everything that estimates.Model has, in closed form."""

    def __init__(self, rng, size=12, latent=3, sigma=0.5):
        self.w, self.sigma = rng.standard_normal((latent, size)), sigma
        self.covariance = np.linalg.inv(np.eye(latent) + self.w @ self.w.T / sigma**2)  # of p(z|x)

    def log_likelihood(self, x, z, gradient=False, progress=iter):
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
    x = model.simulate(rng.standard_normal((6, 3)), noise_of(6, 9))
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
    log_likelihood, bound = estimates.elbo(model, x, mean, var, cubature(3, 6))
    kl = estimates.kl_per_latent(mean, var).sum(1)
    exact = [kl_normal(m, np.diag(v), c, model.covariance)
             for m, v, c in zip(mean, var, model.posterior(x), strict=True)]
    np.testing.assert_allclose(log_likelihood - kl, bound, rtol=1e-10)
    np.testing.assert_allclose(log_likelihood - kl, model.log_p(x) - exact, rtol=1e-10)
    assert min(exact) > 0.1


def test_importance_bound_rises_to_the_truth(linear):
    model, x, mean, var = linear
    log_w = estimates.importance(model, x, mean, 2 * var, 8000, noise_of(6, 1))  # wide enough: bounded weights
    bounds = [estimates.log_mean_exp(log_w.reshape(k, -1)).mean() for k in (1, 20, 1000)]
    truth = model.log_p(x)
    assert bounds[0] < bounds[1] - 0.1 and bounds[1] < bounds[2] < truth.mean() + 0.005
    np.testing.assert_allclose(estimates.log_mean_exp(log_w), truth, atol=0.05)
    assert (estimates.effective_samples(log_w) > 500).all()


def test_the_true_posterior_needs_one_sample(rng):
    """One latent: p(z|x) is diagonal, all weights are p(x), and every one of them counts."""
    model = LinearGaussian(rng, latent=1)
    x = model.simulate(rng.standard_normal((4, 1)), noise_of(4, 9))
    var = np.full((4, 1), model.covariance[0, 0])
    log_w = estimates.importance(model, x, model.posterior(x), var, 5, noise_of(4, 1))
    np.testing.assert_allclose(log_w, np.tile(model.log_p(x), (5, 1)), rtol=1e-12)
    np.testing.assert_allclose(estimates.effective_samples(log_w), 5)


def test_weights_far_apart_stay_finite():
    np.testing.assert_allclose(estimates.log_mean_exp(np.array([[-1e5], [-1e5 - 800]])), [-1e5 - np.log(2)])
    assert estimates.effective_samples(np.array([[0.0, 3], [-1e5, 3]])).tolist() == [1, 2]


def test_naive_monte_carlo_is_far_below(rng):
    model = LinearGaussian(rng, size=40, latent=6, sigma=0.1)
    x = model.simulate(rng.standard_normal((6, 6)), noise_of(6, 9))
    log_w = estimates.importance(model, x, np.zeros((6, 6)), np.ones((6, 6)), 1000, noise_of(6, 1))
    assert (estimates.log_mean_exp(log_w) < model.log_p(x) - 20).all()
    assert (estimates.effective_samples(log_w) < 5).all()


@pytest.mark.parametrize("base", ["q", "prior"])
def test_ais_finds_the_truth_inside_its_sandwich(rng, base):
    model, z = LinearGaussian(rng, size=6, latent=2, sigma=1), rng.standard_normal((6, 2))
    x = model.simulate(z, noise_of(6, 9))
    mean, var = np.zeros((6, 2)), np.ones((6, 2))
    if base == "q":  # as wrong as an encoder's
        mean, var = model.posterior(x) + 0.1, np.tile(0.5 * np.diag(model.covariance), (6, 1))
    found = estimates.anneal(model, x, mean, var, 500, 100, noise_of(6, 2), z)
    lower, upper = estimates.log_mean_exp(found["log_w"]), -estimates.log_mean_exp(found["reverse_log_w"])
    np.testing.assert_allclose(lower, model.log_p(x), atol=0.1)
    np.testing.assert_allclose(upper, model.log_p(x), atol=0.1)
    assert found["acceptance"].mean() == pytest.approx(estimates.ACCEPTANCE, abs=0.08)
    assert (estimates.effective_samples(found["log_w"]) > 100).all()


def test_short_ais_is_sandwiched(rng):
    """Few temperatures from the prior: far off, and the two bounds say so without being told the truth."""
    model, z = LinearGaussian(rng, size=40, latent=6, sigma=0.1), rng.standard_normal((6, 6))
    x = model.simulate(z, noise_of(6, 9))
    found = estimates.anneal(model, x, np.zeros((6, 6)), np.ones((6, 6)), 8, 15, noise_of(6, 2), z)
    lower, upper = estimates.log_mean_exp(found["log_w"]), -estimates.log_mean_exp(found["reverse_log_w"])
    assert (lower < model.log_p(x) - 0.5).all() and (upper > model.log_p(x) + 0.5).all()


@pytest.mark.parametrize("reverse", [False, True])
def test_the_weights_are_unbiased_however_few_the_transitions(rng, reverse):
    """E w = p(x), and in reverse 1/p(x), to a hundredth: that is what makes the bounds bounds.

    Weights after the transition instead of before, a wrong temperature or an inexact acceptance would all show.
    """
    model = LinearGaussian(rng, size=3, latent=2, sigma=1.5)
    x = model.simulate(rng.standard_normal((2, 2)), noise_of(2, 9))
    mean = model.posterior(x) + 0.6 * np.diag(model.covariance) ** 0.5
    var, betas = np.tile((0.6 if reverse else 2) * np.diag(model.covariance), (2, 1)), np.array([0, 0.2, 0.7, 1])
    draws = rng.standard_normal((40000, 2, 2))
    if reverse:
        z, betas = model.posterior(x) + draws @ np.linalg.cholesky(model.covariance).T, betas[::-1]
    else:
        z = mean + np.sqrt(var) * draws
    step = np.array([[0.9, 1.1], [0.7, 1.2]])
    kept = step.copy()
    log_w, accepted = estimates.ais(model, x, z, mean, var, betas, step, noise_of(2, 2))
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
    estimates.anneal(model, x, mean, var, 8, 5, noise_of(6, 2), model.posterior(x))
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
    x, z = model.simulate(np.zeros((4, 3)), noise_of(4, 9)), np.zeros((2, 4, 3))
    state = z, *model.log_likelihood(x, z, gradient=True)
    moved, rate = estimates.hamiltonian(model, x, state, z[0], z[0] + 1, 1.0, np.full((4, 3), 50.0), noise_of(4, 2))
    assert (rate == 0).all()
    for new, old in zip(moved, state, strict=True):
        np.testing.assert_array_equal(new, old)


def test_hamiltonian_transition_leaves_its_density_alone(rng):
    """From exact draws of p(z|x) to exact draws, at a step that rejects many: energy or acceptance wrong would show."""
    model = LinearGaussian(rng)
    x = model.simulate(rng.standard_normal((1, 3)), noise_of(1, 9))
    z = rng.multivariate_normal(model.posterior(x)[0], model.covariance, 20000)[:, None]
    base, step = (np.full((1, 3), 0.3), np.full((1, 3), 2.0)), 1.4 * np.diag(model.covariance)[None] ** 0.5
    state, rates, noise = (z, *model.log_likelihood(x, z, gradient=True)), [], noise_of(1, 4)
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
    x = model.simulate(z[0], noise_of(6, 9))
    state, step = (z, *model.log_likelihood(x, z, gradient=True)), np.full((6, 3), 0.01)
    base = np.full((6, 3), -1.0), np.full((6, 3), 0.5)
    rate = estimates.hamiltonian(model, x, state, *base, beta, step, noise_of(6, 4))[1]
    assert rate.min() > 0.99


def test_temperatures():
    betas = estimates.temperatures(10)
    assert len(betas) == 11 and np.diff(betas)[[0, -1]].max() < np.diff(betas)[5] / 5
    assert betas[0] == 0 and betas[-1] == 1 and (np.diff(betas) > 0).all()


def test_fit_finds_the_best_diagonal_gaussian(rng):
    """For a normal posterior: its mean, and the inverse diagonal of its precision. The prior is a quarter of that."""
    model = LinearGaussian(rng, sigma=2)
    x = model.simulate(rng.standard_normal((8, 3)), noise_of(8, 9))
    truth, best = model.posterior(x), np.tile(1 / np.diag(np.linalg.inv(model.covariance)), (8, 1))
    mean, var = truth + rng.choice([-1, 1], (8, 3)), np.full((8, 3), 0.6)

    def excess(mean, var):
        """The ELBO's distance from its best value."""
        return np.mean([kl_normal(m, np.diag(v), t, model.covariance) - kl_normal(t, np.diag(b), t, model.covariance)
                        for m, v, t, b in zip(mean, var, truth, best, strict=True)])

    fitted = estimates.fit_posterior(model, x, mean, var, noise_of(8, 5))
    assert excess(mean, var) > 3 and excess(*fitted) < 0.03
    np.testing.assert_allclose(fitted[0], truth, atol=0.15)
    np.testing.assert_allclose(fitted[1].mean(0), best[0], rtol=0.1)


def test_latent_summaries(rng):
    """q(z|x) = N(x, 0.3) in one latent and the prior in another, x ~ N(0, 0.7): q(z) is the prior, KL 0."""
    mean = rng.standard_normal((800, 2))
    mean = (mean - mean.mean(0)) / mean.std(0) * [0.7**0.5, 0.01]  # these moments to the last digit
    var = np.tile([0.3, 1.0], (800, 1))
    assert estimates.active_units(mean).tolist() == [True, False]
    assert estimates.active_units(np.array([[1.0, 1], [-1, -1]]) * np.sqrt([0.0101, 0.0099])).tolist() == [True, False]
    lower, upper, error = estimates.aggregate_kl(mean, var, noise_of(800, 6))
    np.testing.assert_allclose([lower, upper], 0, atol=0.03)
    assert abs(upper) < 3 * error < 0.1
    shifted = estimates.aggregate_kl(mean + [2, 0], var, noise_of(800, 6))[:2]
    np.testing.assert_allclose(shifted, 2, atol=0.1)  # |shift|^2 / 2
    kl = estimates.kl_per_latent(np.array([[1.0, 0]]), np.array([[1.0, 4]]))
    np.testing.assert_allclose(kl, [[0.5, (4 - 1 - np.log(4)) / 2]])


def test_full_gaussian(rng, monkeypatch):
    """It finds the density that made the images; its log density is that of its own mean and covariance, by scipy."""
    monkeypatch.setattr(baselines, "BLOCK", 700)  # several blocks, the last one shorter
    axes = rng.standard_normal((12, 12)) * 8
    x = (120 + rng.standard_normal((5000, 12)) @ axes).clip(0, 255).round().astype(np.uint8).reshape(-1, 2, 2, 3)
    gaussian, test = baselines.FullGaussian(estimates.scaled(x[:4000])), estimates.scaled(x[4000:])
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
    gaussian = baselines.FullGaussian(estimates.scaled(x))
    test = estimates.scaled(rng.integers(100, 156, (200, 4, 4, 3), np.uint8))
    diagonal = stats.norm.logpdf(test, gaussian.mean.reshape(4, 4, 3), test.std()).sum((1, 2, 3)).mean()
    assert gaussian.log_density(test).mean() == pytest.approx(diagonal, abs=8)


@pytest.fixture
def students(rng):
    """(images, ln p(x) of each): 8x4x3 images of two Student-t densities that differ in scale by coefficient."""
    axes = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    rows, columns = (fft.dct(np.eye(n), axis=0, norm="ortho") for n in (8, 4))
    rotation = np.kron(np.kron(rows, columns), axes)
    scales = np.exp(rng.uniform(-6, -2, (2, 96)))
    laws = [stats.multivariate_t(np.full(96, 0.1), rotation.T * v @ rotation, df=baselines.NU) for v in scales]
    x = np.concatenate([laws[0].rvs(1500, rng), laws[1].rvs(500, rng)])[rng.permutation(2000)]
    log_p = special.logsumexp([laws[0].logpdf(x) + np.log(0.75), laws[1].logpdf(x) + np.log(0.25)], 0)
    return x.reshape(-1, 8, 4, 3), log_p, rotation


def test_student_mixture_is_the_density_of_its_parameters(students):
    """By scipy's multivariate t."""
    x, _, rotation = students
    mixture = baselines.StudentMixture(x[:1000], 3)
    laws = [stats.multivariate_t(mixture.mean.ravel(), rotation.T * v @ rotation, df=baselines.NU) for v in mixture.v]
    expected = special.logsumexp([law.logpdf(x[1000:].reshape(-1, 96)) + a
                                  for law, a in zip(laws, mixture.log_a, strict=True)], 0)
    np.testing.assert_allclose(mixture.log_density(x[1000:]), expected, rtol=1e-9)
    assert np.exp(mixture.log_a).sum() == pytest.approx(1)


def test_student_mixture_finds_the_density_that_made_the_images(students):
    """Two components come within the cost of as many parameters of the truth; one does not."""
    x, log_p, _ = students
    missing = [(log_p[1600:] - baselines.StudentMixture(x[:1600], count).log_density(x[1600:])).mean()
               for count in (1, 2)]
    assert missing[0] > 5 and -0.2 < missing[1] < 0.5


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
    log_w = estimates.importance(model, grid, mean, var, 400, noise_of(401, 1))
    assert integrate.trapezoid(np.exp(estimates.log_mean_exp(log_w)), grid[:, 0]) == pytest.approx(1, abs=0.01)


# The VAE as the estimators see it


def small_vae(ops, rng, sigma=0.4):
    vae = VAE((8, 8, 3), 3, ops, np.float64, widths=SMALL, sigma=sigma)
    x, eps = rng.uniform(-1, 1, (7, 8, 8, 3)), rng.standard_normal((7, 3))
    for p in vae.params.trained:
        if len(p.shape) == 1:
            p.value += 0.2 * rng.standard_normal(p.shape)
    for _ in range(100):
        vae.forward(x, eps)  # moves the statistics of test mode
    return vae, x


@pytest.mark.parametrize("sigma", [0.4, "optimal", "learned", "pixel"])
def test_model_is_the_density_and_gradient_of_the_decoder(ops, rng, check, sigma):
    vae, x = small_vae(ops, rng, sigma)
    model, z, weight = Model(vae), rng.standard_normal((2, 7, 3)), rng.standard_normal((2, 7))
    log_p, gradient = model.log_likelihood(x, z, gradient=True)
    for k in range(2):
        a = vae.generator.forward(z[k], train=False)
        expected = stats.norm.logpdf(x, vae.likelihood.mean(a), np.broadcast_to(vae.likelihood.var(a), x.shape) ** 0.5)
        np.testing.assert_allclose(log_p[k], expected.sum((1, 2, 3)), rtol=1e-10)
    check(lambda: np.vdot(model.log_likelihood(x, z), weight), {"z": (z, gradient * weight[..., None])})


@pytest.mark.parametrize("sigma", [0.4, "optimal", "learned", "pixel"])
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
    log_p = Model(vae).log_likelihood(x, np.repeat(z, len(grid), 1))[0]
    assert integrate.trapezoid(np.exp(log_p - rest), grid) == pytest.approx(1, rel=1e-6)


def model_of(vae, rows):
    """A Model that sees at least so many rows at a time, as on a GPU."""
    model = Model(vae)
    model.batch = rows
    return model


def all_estimates(vae, x, eps, batch):
    """Everything that runs the VAE, with an image's noise tied to the image."""
    model = model_of(vae, batch)
    mean, var = model.posterior(x)
    _, gradient = model.log_likelihood(x, eps, gradient=True)
    return mean, var, *estimates.elbo(model, x, mean, var, eps), gradient.swapaxes(0, 1)


@pytest.mark.parametrize("sigma", [1.0, "optimal"])
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
    found = [estimates.anneal(model_of(vae, rows), x, *base, 4, 3, noise_of(7, 1)) for rows in (1, 8, 64)]
    for other in found[1:]:
        np.testing.assert_allclose(other["log_w"], found[0]["log_w"], rtol=1e-7)


@pytest.mark.parametrize("sigma", [0.1, "pixel"])
def test_an_images_estimates_have_the_same_bits_in_any_company(ops, monkeypatch, sigma):
    """In float32, whose rounding an accepted or rejected trajectory would make large."""
    monkeypatch.setattr(estimates, "FIT_STEPS", 5)
    vae = VAE((8, 8, 3), 3, ops, widths=SMALL, sigma=sigma)
    images = np.random.default_rng(0).integers(0, 256, (23, 8, 8, 3), np.uint8)
    model = Model(vae)

    def found(rows):
        noise = Noise(0, "AIS", data.hashes(images[rows]))
        x = model.device(estimates.scaled(images[rows], noise))
        mean, var = model.posterior(x)
        log_w = estimates.importance(model, x, mean, var, 20, noise)
        q = estimates.fit_posterior(model, x, mean, var, noise)
        annealed = estimates.anneal(model, x, *q, 5, 4, noise)["log_w"]
        simulated = model.simulate(mean, noise)
        return [mean, var, log_w.T, *q, annealed.T, simulated]

    whole = found(np.arange(23))
    for rows in ([4], [22, 4, 0], [*range(9, 23)]):
        for mine, expected in zip(found(rows), whole, strict=True):
            np.testing.assert_array_equal(mine, expected[rows])


def test_ais_sandwich_of_a_vae(ops, rng, monkeypatch):
    monkeypatch.setattr(estimates, "FIT_STEPS", 50)
    vae, _ = small_vae(ops, rng)
    model, z = Model(vae), rng.standard_normal((4, 3))
    x = model.simulate(z, noise_of(4, 7))
    q = estimates.fit_posterior(model, x, *model.posterior(x), noise_of(4, 8))
    found = estimates.anneal(model, x, *q, 16, 20, noise_of(4, 9), z)
    lower, upper = estimates.log_mean_exp(found["log_w"]), -estimates.log_mean_exp(found["reverse_log_w"])
    naive = estimates.log_mean_exp(estimates.importance(model, x, 0 * z, 1 + 0 * z, 6000, noise_of(4, 10)))
    _, bound = estimates.elbo(model, x, *q, rng.standard_normal((100, 4, 3)))
    np.testing.assert_allclose(lower, naive, atol=0.2)  # three latents and a wide sigma: here naive sampling arrives
    np.testing.assert_allclose(upper, naive, atol=0.2)
    assert bound.mean() < lower.mean() - 0.05


def test_simulated_images_have_the_decoders_moments(ops, rng):
    vae, _ = small_vae(ops, rng, "pixel")
    z = np.repeat(rng.standard_normal((1, 3)), 4000, 0)
    x = Model(vae).simulate(z, noise_of(4000, 11))
    few = [model_of(vae, rows).simulate(z[:7], noise_of(7, 12)) for rows in (1, 3, 64)]
    np.testing.assert_allclose(few[1:], [few[0]] * 2)
    a = vae.generator.forward(z[:1], train=False)
    np.testing.assert_allclose(x.mean(0), vae.likelihood.mean(a)[0], atol=0.1)
    np.testing.assert_allclose(x.var(0), vae.likelihood.var(a)[0], rtol=0.15)


def test_noise_is_reproducible_and_never_repeats():
    """Between calls, parts, seeds and images."""
    first, second = noise_of(5, 1), noise_of(5, 1)
    a = first.normal((5, 3))
    np.testing.assert_array_equal(a, second.normal((5, 3)))
    others = [noise_of(5, 2), Noise(1, "IWAE", numbered(5)), Noise(1, "AIS", [b"%d" % i for i in range(5)])]
    values = [a, *(noise.normal((5, 3)) for noise in (first, *others))]
    assert len(np.unique(values)) == 5 * 15


def test_an_images_noise_is_its_own():
    """Whatever the other images are, on whichever axis they lie; a part of them goes on from the same numbers."""
    names = [b"cat", b"dog", b"cow"]
    for draw in (Noise.normal, Noise.uniform):
        whole = draw(Noise(0, "AIS", names), (3, 4, 5))
        np.testing.assert_array_equal(draw(Noise(0, "AIS", names[1:]), (4, 2, 5), axis=1), whole[1:].swapaxes(0, 1))
        noise = Noise(0, "AIS", names)
        part = noise.of(np.array([2, 0]))
        np.testing.assert_array_equal(draw(part, (2, 4, 5)), whole[[2, 0]])
        np.testing.assert_array_equal(draw(noise, (3, 4, 5)), whole)


def test_noise_has_the_moments_of_its_law():
    """Over images, and over the numbers of each."""
    for draw, law in ((Noise.normal, stats.norm), (Noise.uniform, stats.uniform)):
        x = draw(noise_of(400, 1), (300, 400), axis=1)
        assert stats.kstest(x.ravel(), law.cdf).pvalue > 1e-3
        for axis in (0, 1):
            means = stats.norm(law.mean(), law.std() / x.shape[axis] ** 0.5)
            assert stats.kstest(x.mean(axis), means.cdf).pvalue > 1e-3


def test_dequantized_pixels_fill_their_grey_levels(rng):
    images = rng.integers(0, 256, (40, 8, 8, 3), np.uint8)
    offset = (estimates.scaled(images, noise_of(40, 13)) + 1) * 127.5 - images
    assert -0.5 < offset.min() < -0.499 and 0.499 < offset.max() < 0.5
    assert offset.mean() == pytest.approx(0, abs=4 * (1 / 12 / offset.size) ** 0.5)
    assert offset.var() == pytest.approx(1 / 12, rel=0.03)


@pytest.mark.parametrize("sigma", [0.4, "pixel"])
def test_the_model_on_the_gpu(cuda, rng, sigma):
    """The kernels give the estimators what the NumPy operations do."""
    x, z = rng.uniform(-1, 1, (5, 8, 8, 3)), rng.standard_normal((2, 5, 3))
    found = []
    for ops in (numpy_ops, cuda_ops):
        model = Model(VAE((8, 8, 3), 3, ops, np.float64, widths=SMALL, sigma=sigma))
        found.append([*model.posterior(x), *model.log_likelihood(x, z, gradient=True),
                      model.simulate(z[0], noise_of(5, 1))])
    for expected, mine in zip(*found, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-9, atol=1e-9)


# The card

SETTINGS = {"images": 9, "importance": 20, "ais_images": 3, "ais_chains": 3, "ais_steps": 4, "seed": 0}


BASELINES = "uniform", "gaussian", "student", "mixture"


def make_run(folder, ops, sigma=1.0):
    """(run, vae, data set) of an untrained model and 60 images of noise; its test statistics have moved."""
    rng = np.random.default_rng(7)
    images = [rng.integers(0, 256, (n, 8, 8, 1), np.uint8) for n in (60, 12)]
    dataset = Dataset("noise", *(Split(im, None, f"sha-{len(im)}") for im in images), [])
    vae = VAE((8, 8, 1), 2, ops, widths=SMALL, sigma=sigma)
    for _ in range(20):
        x = estimates.scaled(images[0][rng.permutation(60)[:16]]).astype(np.float32)
        vae.forward(x, rng.standard_normal((16, 2)).astype(np.float32))
    folder.mkdir(exist_ok=True)
    return Run(folder, SimpleNamespace(seed=5, label_names=[])), vae, dataset


def evaluated(run, vae, dataset, step=0, **changes):
    """The card; training's own statistics are others than the model's."""
    return card.evaluate(run, vae, 0.9 * vae.params.moving_statistics, dataset, step, **SETTINGS | changes)


@pytest.fixture
def quick(monkeypatch):
    """Few steps for fits of q, few draws from the prior: what a card says of a model that has learned nothing."""
    be_quick(monkeypatch)


def be_quick(patch):
    patch.setattr(estimates, "FIT_STEPS", 40)
    patch.setattr(card, "NAIVE", 100)


@pytest.fixture(scope="module")
def carded(ops, tmp_path_factory):
    """(vae, data set, card, what it printed, its directory) at sigma 1, of step 17."""
    folder, printed = tmp_path_factory.mktemp("card"), io.StringIO()
    run, vae, dataset = make_run(folder, ops)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        be_quick(patch)
        found = evaluated(run, vae, dataset, 17)
    return vae, dataset, found, printed.getvalue(), folder


def nats(found, part):
    return {name: row["nats_per_image"] for name, row in found[part]["rows"].items()}


def test_card(carded):
    vae, dataset, found, printed, folder = carded
    assert json.loads((folder / "density.json").read_text()) == found
    assert (folder / "density.png").stat().st_size > 10000
    with in_place(vae, 0.9 * vae.params.moving_statistics):  # training's own, as its losses have
        rec, kl = Evaluation(vae, given.test_images(dataset).images, 5).losses()  # with the run's own seed
    assert found["reference_protocol"] == {"images": 12, "rows": {},
                                           "figures": {"loss": rec + kl, "rec": rec, "KL": kl}}
    assert (found["step"], found["test"]["sha256"], found["left_out"]) == (17, "sha-12", [])
    annealed, figures = nats(found, "annealed"), found["annealed"]["figures"]
    assert figures["gap"] == pytest.approx(annealed["ais"] - annealed["elbo"])
    assert figures["gap"] == pytest.approx(figures["approximation_gap"] + figures["amortization_gap"])
    assert figures["approximation_gap"] == pytest.approx(annealed["ais"] - annealed["elbo_fitted"])
    simulated = nats(found, "simulated")
    assert found["simulated"]["figures"]["BDMC_gap"] == pytest.approx(simulated["reverse_ais"] - simulated["ais"])
    exact = {name: row for name, row in nats(found, "bounds").items() if name in BASELINES}
    best = max(exact, key=exact.get)
    assert figures["AIS_less_best_baseline"] == pytest.approx(annealed["ais"] - annealed[best])
    assert abs(found["simulated"]["figures"]["BDMC_gap"]) < 3
    assert f"{annealed['ais']:.2f}" in printed and "step 17, sigma 1," in printed


def test_every_row_says_what_it_is(carded):
    """Only a model's exact density is called exact, and "log-likelihood" names AIS's rows alone."""
    _, _, found, printed, _ = carded
    rows = {(part, name): row for part in ("bounds", "annealed", "simulated")
            for name, row in found[part]["rows"].items()}
    for (part, name), row in rows.items():
        kind = "exact" if name in BASELINES else "lower bound" if "elbo" in name else "lower bound on average"
        assert row["kind"] == ("upper bound on average" if name == "reverse_ais" else kind)
        assert ("log-likelihood" in row["label"]) == ("AIS" in row["label"])
        assert row["images"] == (9 if part == "bounds" else 3)
        assert row["label"] in printed
    assert {name for _, name in rows} == set(card.ROWS) - {"iwae_given", "iwae_summed"}  # which need labels
    assert rows["bounds", "iwae"]["label"] == "IWAE-20"
    assert rows["annealed", "naive"]["label"] == "naive Monte Carlo, 100 draws"


@pytest.fixture
def parts(carded):
    """(model, x, mean, var) of the images that the card's bounds are of, dequantized."""
    vae, dataset, *_ = carded
    model = Model(vae)
    levels = given.test_images(dataset).images[:9]
    offset = card_noise(dataset, "pixels").uniform((9, 8, 8, 1)) - 0.5
    x = model.device((levels + offset) / 127.5 - 1)
    return model, x, *model.posterior(x)


def card_noise(dataset, part, count=9):
    """That of the first test images."""
    return Noise(0, part, data.hashes(given.test_images(dataset).images[:count]))


def log_weights(model, x, mean, var, eps):
    """ln p(x, z)/q(z), written with scipy's normal density."""
    z = mean + np.sqrt(var) * eps
    ratio = stats.norm.logpdf(z) - stats.norm.logpdf(z, mean, np.sqrt(var))
    return model.log_likelihood(x, z) + ratio.sum(-1)


def test_bounds_are_what_their_rows_say(carded, parts):
    """Every row and figure again, from the same noise."""
    vae, dataset, found, _, _ = carded
    model, x, mean, var = parts
    eps = card_noise(dataset, "ELBO").normal((score.DRAWS, 9, 2), 1)
    noise = card_noise(dataset, "IWAE")
    log_w = log_weights(model, x, mean, var, np.concatenate([noise.normal((10, 9, 2), 1) for _ in range(2)]))
    levels = model.device(given.test_images(dataset).images[:9] / 127.5 - 1)
    train = Noise(0, "pixels", data.hashes(dataset.train.images))
    fitted = estimates.scaled(dataset.train.images, train).astype(np.float32)
    expected = {
        "uniform": -64 * np.log(256 / 127.5),
        "gaussian": baselines.FullGaussian(fitted).log_density(x).mean(),
        "student": baselines.StudentMixture(fitted, 1).log_density(x).mean(),
        "mixture": baselines.StudentMixture(fitted, 8).log_density(x).mean(),
        "elbo": log_weights(model, x, mean, var, eps).mean(),
        "elbo_levels": log_weights(model, levels, *model.posterior(levels), eps).mean(),
        "iwae": special.logsumexp(log_w - np.log(20), 0).mean()}
    with in_place(vae, 0.9 * vae.params.moving_statistics):
        expected["elbo_moving"] = log_weights(model, x, *model.posterior(x), eps).mean()
    for name, value in expected.items():
        assert found["bounds"]["rows"][name]["nats_per_image"] == pytest.approx(value, rel=2e-6), name
    for name in ("elbo_levels", "elbo_moving"):
        assert expected[name] != pytest.approx(expected["elbo"], rel=1e-5)  # or the rows would tell nothing
    np.testing.assert_allclose(found["bounds"]["elbo_each"], log_weights(model, x, mean, var, eps).mean(0), rtol=1e-6)
    figures = found["bounds"]["figures"]
    assert figures["KL"] == pytest.approx((mean**2 + var - 1 - np.log(var)).sum(1).mean() / 2)
    assert figures["expected_log_likelihood"] - figures["KL"] == pytest.approx(expected["elbo"], rel=2e-6)
    w = np.exp(log_w - log_w.max(0))
    assert figures["effective_importance_samples"] == pytest.approx((w.sum(0) ** 2 / (w**2).sum(0)).mean(), rel=1e-3)


def test_annealed_rows_are_what_they_say(carded, parts, quick):
    """On the first three images: naive draws from the prior, the fitted q's bound from the fitted q."""
    _, dataset, found, _, _ = carded
    model, x, mean, var = (parts[0], *(part[:3] for part in parts[1:]))
    noise = card_noise(dataset, "naive", 3)
    sizes = [15, 15, 14, 14, 14, 14, 14]
    naive = log_weights(model, x, 0 * mean, 0 * var + 1, np.concatenate([noise.normal((k, 3, 2), 1) for k in sizes]))
    noise = card_noise(dataset, "IWAE", 3)
    log_w = log_weights(model, x, mean, var, np.concatenate([noise.normal((10, 3, 2), 1) for _ in range(2)]))
    eps = card_noise(dataset, "ELBO", 3).normal((score.DRAWS, 3, 2), 1)
    noise = card_noise(dataset, "AIS", 3)
    q = estimates.fit_posterior(model, x, mean, var, noise)
    annealed = estimates.anneal(model, x, *q, 3, 4, noise)["log_w"]
    expected = {
        "naive": special.logsumexp(naive - np.log(100), 0), "iwae": special.logsumexp(log_w - np.log(20), 0),
        "elbo": log_weights(model, x, mean, var, eps).mean(0), "elbo_fitted": log_weights(model, x, *q, eps).mean(0),
        "ais": special.logsumexp(annealed - np.log(3), 0)}
    for name, values in expected.items():
        assert found["annealed"]["rows"][name]["nats_per_image"] == pytest.approx(values.mean(), rel=1e-6), name
    np.testing.assert_allclose(found["annealed"]["elbo_each"], expected["elbo"], rtol=1e-6)
    np.testing.assert_allclose(found["annealed"]["ais_each"], expected["ais"], rtol=1e-6)
    effective = found["annealed"]["figures"]["effective_naive_samples"]
    assert effective == pytest.approx(estimates.effective_samples(naive).mean(), rel=1e-3)


def test_the_best_baseline_is_compared_image_by_image(carded, parts):
    _, dataset, found, _, _ = carded
    x = parts[1][:3]
    train = Noise(0, "pixels", data.hashes(dataset.train.images))
    fitted = estimates.scaled(dataset.train.images, train).astype(np.float32)
    each = {"uniform": baselines.uniform(64), "gaussian": baselines.FullGaussian(fitted).log_density(x),
            "student": baselines.StudentMixture(fitted, 1).log_density(x),
            "mixture": baselines.StudentMixture(fitted, 8).log_density(x)}
    exact = nats(found, "bounds")
    difference = np.subtract(found["annealed"]["ais_each"], each[max(BASELINES, key=exact.get)])
    figures = found["annealed"]["figures"]
    assert figures["AIS_less_best_baseline"] == pytest.approx(difference.mean(), rel=1e-6)
    assert figures["AIS_less_best_baseline_standard_error"] == pytest.approx(stats.sem(difference), rel=1e-6)


def test_simulated_rows_are_what_they_say(carded, parts, quick):
    """AIS from both ends of images drawn from the model; and what the figures say of its chains."""
    found = carded[2]["simulated"]
    model = parts[0]
    names = numbered(3)
    z = Noise(0, "simulated codes", names).normal((3, 2))
    x = model.simulate(z, Noise(0, "simulated pixels", names))
    noise = Noise(0, "simulated AIS", names)
    q = estimates.fit_posterior(model, x, *model.posterior(x), noise)
    annealed = estimates.anneal(model, x, *q, 3, 4, noise, z)
    lower = special.logsumexp(annealed["log_w"] - np.log(3), 0)
    upper = -special.logsumexp(annealed["reverse_log_w"] - np.log(3), 0)
    assert found["rows"]["ais"]["nats_per_image"] == pytest.approx(lower.mean(), rel=1e-6)
    assert found["rows"]["reverse_ais"]["nats_per_image"] == pytest.approx(upper.mean(), rel=1e-6)
    effective = estimates.effective_samples(annealed["log_w"]).mean()
    gap = upper - lower
    expected = {"BDMC_gap": gap.mean(), "BDMC_gap_standard_error": stats.sem(gap), "largest_BDMC_gap": gap.max(),
                "effective_AIS_chains": effective, "AIS_acceptance": annealed["acceptance"].mean()}
    assert found["figures"] == pytest.approx(expected, abs=1e-4)
    assert effective < 2.999


def test_standard_errors_of_few_skewed_values_are_rough(rng):
    """As the card says of 16: 1.96 of them to each side hold the mean of skewed values in 84 to 92 % of cases."""
    for law, covered in ((stats.lognorm(1), 0.84), (stats.expon(), 0.9), (stats.gamma(3), 0.92)):
        x = law.rvs((40000, 16), rng)
        error = [estimates.standard_error(row) for row in x]
        assert (np.abs(x.mean(1) - law.mean()) < 1.96 * np.array(error)).mean() == pytest.approx(covered, abs=0.01)


def test_sigma_is_refitted_on_training_images(carded):
    """It is the root of the mean squared error of reconstructions from draws of q."""
    vae, dataset, found, _, _ = carded
    model = Model(vae)
    images = dataset.train.images[:9]
    names = list(data.hashes(images))
    x = model.device(estimates.scaled(images, Noise(0, "pixels", names)))
    mean, var = model.posterior(x)
    z = mean + np.sqrt(var) * Noise(0, "refit", names).normal((2, 9, 2), 1)
    x_hat = np.stack([vae.decode(model.device(codes)).copy() for codes in z])
    assert found["refitted_sigma"] == pytest.approx(((x - x_hat) ** 2).mean() ** 0.5, rel=1e-5)


def test_the_refitted_row_is_the_elbo_of_a_model_with_that_sigma(carded, parts):
    """But for the noise of the estimate at the old sigma, which is scaled as squared errors are."""
    vae, dataset, found, _, _ = carded
    model, x, mean, var = parts
    eps = card_noise(dataset, "ELBO").normal((score.DRAWS, 9, 2), 1)
    kept = vae.likelihood.log_sigma.value.copy()
    old, _ = estimates.elbo(model, x, mean, var, eps)
    vae.likelihood.log_sigma.value[...] = np.log(found["refitted_sigma"])
    new, _ = estimates.elbo(model, x, mean, var, eps)
    vae.likelihood.log_sigma.value[...] = kept
    figures = found["bounds"]["figures"]
    noise = (figures["expected_log_likelihood"] - old.mean()) / found["refitted_sigma"] ** 2
    row = found["bounds"]["rows"]["elbo_refitted"]
    assert row["nats_per_image"] == pytest.approx(new.mean() + noise - figures["KL"], abs=0.01)
    assert row["nats_per_image"] > found["bounds"]["rows"]["elbo"]["nats_per_image"]
    assert row["label"] == f"ELBO, sigma refitted: {found['refitted_sigma']:.4f}"


def test_card_of_a_learned_sigma_is_the_same_again(ops, quick, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(card, "draw", lambda path, card: None)
    run, vae, dataset = make_run(tmp_path, ops, "learned")
    vae.likelihood.log_sigma.value[...] = -1.5
    found = evaluated(run, vae, dataset)
    assert evaluated(run, vae, dataset) == found
    assert found["sigma_value"] == pytest.approx(np.exp(-1.5))
    assert "sigma learned (0.2231)" in capsys.readouterr().out
    assert "refitted_sigma" not in found and "elbo_refitted" not in found["bounds"]["rows"]


@pytest.mark.parametrize("sigma, stages", [(0.4, 19), ("pixel", 18)])
def test_the_stages_are_counted(ops, quick, tmp_path, capsys, sigma, stages):
    run, vae, dataset = make_run(tmp_path, ops, sigma)
    evaluated(run, vae, dataset)
    found = re.findall(r"^ +[0-9.]+ s  stage (\d+) of (\d+): .+", capsys.readouterr().out, re.MULTILINE)
    assert found == [(str(number), str(stages)) for number in range(1, stages + 1)]


def test_progress_is_a_bar_on_a_terminal_alone(capsys, monkeypatch):
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal, raising=False)
        assert list(report.Stages(3)("ELBO")(range(2))) == [0, 1]
        assert ("ELBO: " in capsys.readouterr().err) == terminal


def test_card_of_one_image(ops, quick, tmp_path, capsys):
    """The least that can be asked for: no standard error, no verdict on the latents, nothing that is not a number."""
    run, vae, dataset = make_run(tmp_path, ops, "pixel")
    evaluated(run, vae, dataset, images=1, importance=1, ais_images=1, ais_chains=1, ais_steps=1)
    found = json.loads((tmp_path / "density.json").read_text(), parse_constant=pytest.fail)  # no NaN
    assert found["bounds"]["rows"]["iwae"]["standard_error"] is None and found["sigma_value"] is None
    assert len(found["latents"]["kl"]) == 2 and not found["latents"]["figures"] and "active" not in found["latents"]
    assert found["notes"] == ["one image cannot tell which latents are active, nor KL(q(z) || p(z))"]
    printed = capsys.readouterr().out
    assert found["notes"][0] in printed and not any(word in printed for word in ("nan", "collapsed", "+- -"))


def test_standard_error_over_images(rng):
    values = rng.standard_normal(50)
    row = card.section({"dimensions": 12}, {"uniform": values}, {})["rows"]["uniform"]
    assert row["standard_error"] == pytest.approx(stats.sem(values)) and row["images"] == 50
    assert row["nats_per_image"] == pytest.approx(values.mean())


def test_a_covariance_too_large_for_memory_is_left_out(ops, quick, tmp_path, capsys, monkeypatch):
    """A quarter of the memory is the limit: 64 x 64 values of 8 bytes."""
    run, vae, dataset = make_run(tmp_path, ops)
    monkeypatch.setattr(baselines, "memory", lambda: 4 * 64 * 64 * 8)
    assert "gaussian" in evaluated(run, vae, dataset)["bounds"]["rows"]
    monkeypatch.setattr(baselines, "memory", lambda: 4 * 64 * 64 * 8 - 1)
    found = evaluated(run, vae, dataset)
    assert set(found["bounds"]["rows"]) & set(BASELINES) == {"uniform", "student", "mixture"}
    assert found["notes"][0].startswith("the full Gaussian is left out: its covariance of 64 x 64 values")
    assert found["notes"][0] in capsys.readouterr().out


def test_images_that_were_trained_on_are_left_out(ops, quick, tmp_path, capsys):
    """And copies of others; those are named. What is said of the rest does not change."""
    run, vae, dataset = make_run(tmp_path, ops)
    whole = evaluated(run, vae, dataset, images=12)
    order = np.random.RandomState(0).permutation(12)
    dataset.test.names = [f"{row}.png" for row in range(12)]
    dataset.train.images[7] = dataset.test.images[order[0]]
    dataset.test.images[order[9]] = dataset.test.images[order[4]]
    capsys.readouterr()
    found = evaluated(run, vae, dataset, images=12)
    left_out = [f"{order[0]}.png", f"{order[9]}.png"]
    assert found["left_out"] == left_out
    assert f"2 test images are left out, as copies of others or of training images: {', '.join(left_out)}\n" in \
        capsys.readouterr().out
    assert found["bounds"]["rows"]["elbo"]["images"] == found["reference_protocol"]["images"] == 10
    assert found["bounds"]["elbo_each"] == [*whole["bounds"]["elbo_each"][1:9], *whole["bounds"]["elbo_each"][10:]]
    assert found["annealed"]["ais_each"][:2] == whole["annealed"]["ais_each"][1:]


def test_nothing_is_said_of_images_that_were_all_trained_on(ops, tmp_path):
    run, vae, dataset = make_run(tmp_path, ops)
    dataset.train.images[20:32] = dataset.test.images
    with pytest.raises(UserError, match="every test image occurs in the training set"):
        evaluated(run, vae, dataset)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused_at_once(ops, tmp_path, monkeypatch):
    run, vae, dataset = make_run(tmp_path / "gone", ops)
    run.folder.rmdir()
    monkeypatch.setattr(card, "Stages", pytest.fail)
    with pytest.raises(UserError, match="cannot write .*gone"):
        evaluated(run, vae, dataset)


def test_a_collapsed_posterior_is_called_so():
    found = {"seed": 0, "notes": []}
    card.latents(found, np.zeros((50, 3)), np.ones((50, 3)), numbered(50))
    assert found["notes"] == ["warning: the posterior has collapsed: q(z|x) ignores the image in 3 of 3 latents"]
    mean = np.random.default_rng(0).standard_normal((50, 3)) * [1, 1, 0]
    card.latents(found, mean, np.full((50, 3), 0.1), numbered(50))
    assert found["notes"][1].startswith("warning: the posterior has collapsed in part: q(z|x) ignores")
    assert found["latents"]["active"] == [True, True, False]
    card.latents(found, mean[:, :2], np.full((50, 2), 0.1), numbered(50))
    assert len(found["notes"]) == 2


def test_the_table_of_densities(carded):
    """One line for each baseline of a data set, one for each run, one for a refitted sigma."""
    found = carded[2]
    bounds, few = found["bounds"]["rows"], found["annealed"]["rows"]
    pixel = found | {"sigma": "pixel", "sigma_value": None}
    lines = density.lines([density.summary("noise", found), density.summary("noise", pixel)])
    labels = [bounds[name]["label"] for name in BASELINES]
    assert [line[1] for line in lines] == [*labels, "VAE, sigma 1", "VAE, sigma pixel"]
    cells = dict(zip(density.HEADER, lines[4], strict=True))
    assert (cells["steps"], cells["latents"], cells["images"]) == ("17", "2", "9, 3*")
    assert cells["KL"] == f"{found['bounds']['figures']['KL']:.1f}"
    assert cells["ELBO"].startswith(f"{bounds['elbo']['nats_per_image']:.1f} ±")
    assert cells["bits/dim"] == f"≤ {bounds['elbo']['bits_per_dim']:.3f}"
    assert cells["grey levels"] == f"≤ {bounds['elbo_levels']['bits_per_dim']:.3f}"
    assert cells["AIS*"].startswith(f"{few['ais']['nats_per_image']:.1f} ±")
    assert cells["bits/dim*"] == f"≤ {few['ais']['bits_per_dim']:.3f}"
    figures = found["annealed"]["figures"]
    assert cells["less best baseline*"] == (f"{figures['AIS_less_best_baseline']:+.1f} ± "
                                            f"{figures['AIS_less_best_baseline_standard_error']:.1f}")
    exact = dict(zip(density.HEADER, lines[0], strict=True))
    assert exact["bits/dim"] == f"{bounds['uniform']['bits_per_dim']:.3f}"
    assert exact["ln p(x)"] == f"{bounds['uniform']['nats_per_image']:.1f}"


def test_the_page_of_results_has_the_table_of_those_kept():
    results = json.loads(density.RESULTS.read_text())
    assert readme.table(density.HEADER, density.lines(results)) in readme.RESULTS_PAGE.read_text()


def test_the_page_has_the_settings_and_the_constants():
    page = " ".join((readme.README.parent / "docs" / "density.md").read_text().split())
    peak = 0.5 * np.log2(2 * np.pi)
    for text in (f"{score.DRAWS} draws for each", f"{estimates.FIT_STEPS} steps of Adam", f"{estimates.ACCEPTANCE}",
                 f"{estimates.LEAPFROG} leapfrog steps", f"exceeds {estimates.ACTIVE}",
                 f"{card.BASELINE_IMAGES:,} training images", f"= {3072 / 2 * np.log(2 * np.pi):.2f} nats",
                 f"= {peak + np.log2(127.5):.2f} bits", f"= {peak + np.log2(255):.2f} bits"):
        assert text in page, text
    cpu = {name: value for name, (_, value, _) in DENSITY.items()}
    gpu = {name: value for name, (*_, value) in DENSITY.items()}
    assert (f"{cpu['images']:,} images, IWAE-{cpu['importance']}, AIS on {cpu['ais_images']} images with "
            f"{cpu['ais_chains']} chains of {cpu['ais_steps']} temperatures") in page
    assert (f"IWAE-{gpu['importance']} and to {gpu['ais_images']} images, {gpu['ais_chains']} chains, "
            f"{gpu['ais_steps']:,} temperatures") in page
