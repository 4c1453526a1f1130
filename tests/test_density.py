"""The estimators of ln p(x) against a model whose ln p(x) and p(z|x) are known, and the VAE as they see it."""

import json

import numpy as np
import pytest
from scipy import integrate, stats

from minivae import card, density
from minivae.data import Dataset, Split
from minivae.density import Model, Noise
from minivae.errors import UserError
from minivae.runs import Config, Run
from minivae.train import Trainer
from minivae.vae import VAE, Widths

SMALL = Widths((4, 5, 6), 9, (6, 5, 4))


class LinearGaussian:
    """x = w z + 0.5 noise: p(x) and p(z|x) are normal. Everything that density.Model has, in closed form."""

    def __init__(self, rng, size=12, latent=3, sigma=0.5):
        self.w, self.sigma = rng.standard_normal((latent, size)), sigma
        self.covariance = np.linalg.inv(np.eye(latent) + self.w @ self.w.T / sigma**2)  # of p(z|x)

    def log_likelihood(self, x, z, gradient=False):
        error = x - z @ self.w
        log_p = stats.norm.logpdf(error, 0, self.sigma).sum(-1)
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
    log_likelihood, kl, log_w = density.elbo(model, x, mean, var, cubature(3, 6))
    exact = [kl_normal(m, np.diag(v), c, model.covariance)
             for m, v, c in zip(mean, var, model.posterior(x), strict=True)]
    np.testing.assert_allclose(log_likelihood - kl, log_w.mean(0), rtol=1e-10)
    np.testing.assert_allclose(log_likelihood - kl, model.log_p(x) - exact, rtol=1e-10)
    assert min(exact) > 0.1


def test_importance_bound_rises_to_the_truth(linear):
    model, x, mean, var = linear
    log_w = density.importance(model, x, mean, 2 * var, 8000, Noise(0, 1), "IWAE")  # wide enough: bounded weights
    groups = [log_w.reshape(-1, k, 6) for k in (1, 20, 1000)]
    bounds = [np.mean([density.log_mean_exp(group) for group in g]) for g in groups]
    truth = model.log_p(x)
    assert bounds[0] < bounds[1] - 0.1 and bounds[1] < bounds[2] < truth.mean() + 0.005
    np.testing.assert_allclose(density.log_mean_exp(log_w), truth, atol=0.05)
    assert (density.effective_samples(log_w) > 1000).all()


def test_the_true_posterior_needs_one_sample(rng):
    """One latent: p(z|x) is diagonal, all weights are p(x), and every one of them counts."""
    model = LinearGaussian(rng, latent=1)
    x = model.simulate(rng.standard_normal((4, 1)), Noise(3, 9))
    var = np.full((4, 1), model.covariance[0, 0])
    log_w = density.importance(model, x, model.posterior(x), var, 5, Noise(0, 1), "")
    np.testing.assert_allclose(log_w, np.tile(model.log_p(x), (5, 1)), rtol=1e-12)
    np.testing.assert_allclose(density.effective_samples(log_w), 5)


def test_weights_far_apart_stay_finite():
    np.testing.assert_allclose(density.log_mean_exp(np.array([[-1e5], [-1e5 - 800]])), [-1e5 - np.log(2)])
    assert density.effective_samples(np.array([[0.0, 3], [-1e5, 3]])).tolist() == [1, 2]


def test_naive_monte_carlo_is_far_below(rng):
    model = LinearGaussian(rng, size=40, latent=6, sigma=0.1)
    x = model.simulate(rng.standard_normal((6, 6)), Noise(3, 9))
    log_w = density.importance(model, x, np.zeros((6, 6)), np.ones((6, 6)), 1000, Noise(0, 1), "")
    assert (density.log_mean_exp(log_w) < model.log_p(x) - 20).all()
    assert (density.effective_samples(log_w) < 5).all()


@pytest.mark.parametrize("base", ["q", "prior"])
def test_ais_finds_the_truth_inside_its_sandwich(rng, base):
    model, z = LinearGaussian(rng, size=6, latent=2, sigma=1), rng.standard_normal((6, 2))
    x = model.simulate(z, Noise(3, 9))
    mean, var = np.zeros((6, 2)), np.ones((6, 2))
    if base == "q":  # as wrong as an encoder's
        mean, var = model.posterior(x) + 0.1, np.tile(0.5 * np.diag(model.covariance), (6, 1))
    found = density.anneal(model, x, mean, var, 300, 200, Noise(0, 2), z)
    lower, upper = density.log_mean_exp(found["log_w"]), -density.log_mean_exp(found["reverse_log_w"])
    np.testing.assert_allclose(lower, model.log_p(x), atol=0.05)
    np.testing.assert_allclose(upper, model.log_p(x), atol=0.05)
    assert found["acceptance"].mean() == pytest.approx(density.ACCEPTANCE, abs=0.08)
    assert (density.effective_samples(found["log_w"]) > 100).all()


def test_short_ais_is_sandwiched(rng):
    """Few temperatures from the prior: far off, and the two bounds say so without being told the truth."""
    model, z = LinearGaussian(rng, size=40, latent=6, sigma=0.1), rng.standard_normal((6, 6))
    x = model.simulate(z, Noise(3, 9))
    found = density.anneal(model, x, np.zeros((6, 6)), np.ones((6, 6)), 8, 15, Noise(0, 2), z)
    lower, upper = density.log_mean_exp(found["log_w"]), -density.log_mean_exp(found["reverse_log_w"])
    assert (lower < model.log_p(x) - 0.5).all() and (upper > model.log_p(x) + 0.5).all()


def test_hamiltonian_transition_leaves_its_density_alone(rng):
    """From exact draws of p(z|x) to exact draws, at a step that rejects many: energy or acceptance wrong would show."""
    model = LinearGaussian(rng)
    x = model.simulate(rng.standard_normal((1, 3)), Noise(3, 9))
    z = rng.multivariate_normal(model.posterior(x)[0], model.covariance, 20000)[:, None]
    base, step = (np.full((1, 3), 0.3), np.full((1, 3), 2.0)), 1.4 * np.diag(model.covariance)[None] ** 0.5
    state, rates, noise = (z, *model.log_likelihood(x, z, gradient=True)), [], Noise(0, 4)
    for _ in range(3):
        state, rate = density.hamiltonian(model, x, state, *base, 1.0, step, noise)
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
    rate = density.hamiltonian(model, x, state, np.full((6, 3), -1.0), np.full((6, 3), 0.5), beta, step, Noise(0, 4))[1]
    assert rate.min() > 0.99


def test_temperatures():
    betas = density.temperatures(10)
    assert len(betas) == 11 and betas[0] == 0 and betas[-1] == 1 and (np.diff(betas) > 0).all()


def test_fit_finds_the_best_diagonal_gaussian(linear):
    """For a normal posterior: its mean, and the inverse diagonal of its precision."""
    model, x, mean, var = linear
    fitted_mean, fitted_var = density.fit_posterior(model, x, mean, var, Noise(0, 5))
    sd = np.diag(model.covariance) ** 0.5
    assert np.abs((mean - model.posterior(x)) / sd).max() > 1
    np.testing.assert_allclose(fitted_mean / sd, model.posterior(x) / sd, atol=0.15)
    np.testing.assert_allclose(fitted_var, np.tile(1 / np.diag(np.linalg.inv(model.covariance)), (6, 1)), rtol=0.25)


def test_latent_summaries(rng):
    """q(z|x) = N(x, 0.3) in one latent and the prior in another, x ~ N(0, 0.7): q(z) is the prior, KL 0."""
    mean = np.stack([rng.normal(0, 0.7**0.5, 1500), rng.normal(0, 0.01, 1500)], 1)
    var = np.tile([0.3, 1.0], (1500, 1))
    assert density.active_units(mean).tolist() == [True, False]
    lower, upper = density.aggregate_kl(mean, var, Noise(0, 6))
    np.testing.assert_allclose([lower, upper], 0, atol=0.03)
    shifted = density.aggregate_kl(mean + [2, 0], var, Noise(0, 6))
    np.testing.assert_allclose(shifted, 2, atol=0.1)  # |shift|^2 / 2
    kl = density.kl_per_latent(np.array([[1.0, 0]]), np.array([[1.0, 4]]))
    np.testing.assert_allclose(kl, [[0.5, (4 - 1 - np.log(4)) / 2]])


def test_full_gaussian(rng):
    """It finds the density that made the images; its log density is scipy's."""
    axes = rng.standard_normal((12, 12)) / 8
    x = 0.1 + (rng.standard_normal((5000, 12)) @ axes).reshape(-1, 2, 2, 3)
    gaussian = density.FullGaussian(x[:4000])
    covariance = gaussian.axes * gaussian.var @ gaussian.axes.T
    flat = x[4000:].reshape(-1, 12)
    expected = stats.multivariate_normal(gaussian.mean, covariance).logpdf(flat)
    np.testing.assert_allclose(gaussian.log_density(x[4000:]), expected, rtol=1e-8)
    truth = stats.multivariate_normal(np.full(12, 0.1), axes.T @ axes).logpdf(flat)
    assert expected.mean() == pytest.approx(truth.mean(), abs=0.1)


def test_bits_of_known_densities():
    """Uniform over the 256 levels is 8 bits; and 2^-bits of the levels sums to one, as probabilities do."""
    assert density.bits_per_dim(7 * np.log(127.5 / 256), 7) == pytest.approx(8)
    levels = np.arange(-200, 456) / 127.5 - 1
    bits = density.bits_per_dim(stats.norm.logpdf(levels, 0.1, 0.2), 1)
    assert (2.0**-bits).sum() == pytest.approx(1, abs=1e-6)


def test_estimated_density_integrates_to_one(rng):
    model = LinearGaussian(rng, size=1, latent=2)
    grid = np.linspace(-12, 12, 401)[:, None]
    mean, var = model.posterior(grid), np.tile(2 * np.diag(model.covariance), (401, 1))
    log_w = density.importance(model, grid, mean, var, 400, Noise(0, 1), "")
    assert integrate.trapezoid(np.exp(density.log_mean_exp(log_w)), grid[:, 0]) == pytest.approx(1, abs=0.01)


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


def estimates(vae, x, eps, batch):
    """Everything that runs the VAE, with an image's noise tied to the image."""
    model = Model(vae, batch)
    mean, var = model.posterior(x)
    likelihood, kl, log_w = density.elbo(model, x, mean, var, eps)
    return mean, var, likelihood, kl, log_w.T, model.log_likelihood(x, eps, gradient=True)[1].swapaxes(0, 1)


@pytest.mark.parametrize("sigma", ["1", "optimal"])
def test_neither_batch_size_nor_order_matters(ops, rng, sigma):
    """With batch norm in train mode, or sigma from the batch, both would."""
    vae, x = small_vae(ops, rng, sigma)
    eps, order, moving = rng.standard_normal((3, 7, 3)), rng.permutation(7), vae.params.moving_statistics.copy()
    whole = estimates(vae, x, eps, 64)
    for batch in (1, 2, 5, 7):
        for mine, expected in zip(estimates(vae, x, eps, batch), whole, strict=True):
            np.testing.assert_allclose(mine, expected, rtol=1e-9, atol=1e-9)
    for mine, expected in zip(estimates(vae, x[order], eps[:, order], 4), whole, strict=True):
        np.testing.assert_allclose(mine, expected[order], rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(vae.params.moving_statistics, moving)


def test_ais_does_not_depend_on_the_batch_size(ops, rng):
    vae, x = small_vae(ops, rng)
    base = np.zeros((7, 3)), np.ones((7, 3))
    found = [density.anneal(Model(vae, batch), x, *base, 4, 6, Noise(0, 1)) for batch in (5, 64)]
    np.testing.assert_allclose(found[0]["log_w"], found[1]["log_w"], rtol=1e-7)


def test_ais_sandwich_of_a_vae(ops, rng):
    vae, _ = small_vae(ops, rng)
    model, z = Model(vae, 64), rng.standard_normal((6, 3))
    x = model.simulate(z, Noise(0, 7))
    q = density.fit_posterior(model, x, *model.posterior(x), Noise(0, 8))
    found = density.anneal(model, x, *q, 16, 40, Noise(0, 9), z)
    lower, upper = density.log_mean_exp(found["log_w"]), -density.log_mean_exp(found["reverse_log_w"])
    naive = density.log_mean_exp(density.importance(model, x, 0 * z, 1 + 0 * z, 10000, Noise(0, 10), ""))
    log_w = density.elbo(model, x, *q, rng.standard_normal((200, 6, 3)))[2]
    np.testing.assert_allclose(lower, naive, atol=0.2)  # three latents and a wide sigma: here naive sampling arrives
    np.testing.assert_allclose(upper, naive, atol=0.2)
    assert log_w.mean() < lower.mean() - 0.05


def test_simulated_images_have_the_decoders_moments(ops, rng):
    vae, _ = small_vae(ops, rng, "pixel")
    model, z = Model(vae, 64), np.repeat(rng.standard_normal((1, 3)), 4000, 0)
    x = model.simulate(z, Noise(0, 11))
    a = vae.generator.forward(z[:1], train=False)
    np.testing.assert_allclose(x.mean(0), vae.likelihood.mean(a)[0], atol=0.1)
    np.testing.assert_allclose(x.var(0), vae.likelihood.var(a)[0], rtol=0.15)


def test_noise_is_reproducible_and_never_repeats():
    first, second, other = Noise(0, 1), Noise(0, 1), Noise(0, 2)
    a, b = first.normal((5, 3)), first.normal((5, 3))
    np.testing.assert_array_equal(a, second.normal((5, 3)))
    assert not np.intersect1d(a, b).size and not np.intersect1d(a, other.normal((5, 3))).size


# The card


def make_run(folder, ops, rng, sigma="1"):
    """An untrained run on 60 images of noise, its test statistics moved by a few batches."""
    images = [rng.integers(0, 256, (n, 8, 8, 1), np.uint8) for n in (60, 12)]
    dataset = Dataset("noise", *(Split(im, None, f"sha-{len(im)}") for im in images), [])
    config = Config(data="noise", steps=1, batch_size=16, latent=2, lr=1e-3, seed=0, kl="sample", log_every=10,
                    eval_every=10, checkpoint_every=10, shape=(8, 8, 1), train_sha256="", test_sha256="", sigma=sigma)
    trainer = Trainer(config, dataset, ops, widths=SMALL)
    for _ in range(20):
        trainer.step()
    return Run(folder, config), trainer, dataset


SETTINGS = {"images": 9, "importance": 20, "ais_images": 3, "ais_chains": 3, "ais_steps": 4, "seed": 0}


@pytest.mark.parametrize("sigma", ["1", "learned"])
def test_card(ops, rng, tmp_path, capsys, sigma):
    run, trainer, dataset = make_run(tmp_path, ops, rng, sigma)
    found = card.evaluate(run, trainer, dataset, **SETTINGS)
    assert json.loads((tmp_path / "density.json").read_text()) == found
    assert (tmp_path / "density.png").stat().st_size > 10000
    rec, kl = trainer.test_losses()
    assert found["reference_protocol"]["loss"] == pytest.approx(rec + kl)
    nats = {name: row["nats_per_image"] for name, row in (found["bounds"] | found["annealed"]).items()}
    assert nats["log-likelihood by AIS"] == pytest.approx(nats["ELBO, 10 draws"] + found["gap"]["total"])
    assert found["gap"]["total"] == pytest.approx(found["gap"]["approximation"] + found["gap"]["amortization"])
    assert found["bounds"]["uniform density"]["bits_per_dim"] == pytest.approx(8)
    assert found["test"]["sha256"] == "sha-12"
    assert abs(found["simulated"]["gap"]) < 3
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if "log-likelihood" in line and "ELBO," in line] == []
    assert f"{nats['log-likelihood by AIS']:.2f}" in printed
    if sigma == "1":
        assert found["refitted_sigma"]["gain"] > 0 and found["refitted_sigma"]["sigma"] < 1
    again = card.evaluate(run, trainer, dataset, **SETTINGS)
    assert again == found


def test_refitted_sigma_is_the_elbo_of_a_model_with_it(ops, rng, tmp_path):
    run, trainer, dataset = make_run(tmp_path, ops, rng)
    found = card.evaluate(run, trainer, dataset, **SETTINGS)
    trainer.vae.likelihood.log_sigma.value[...] = np.log(found["refitted_sigma"]["sigma"])
    x = Model(trainer.vae, 4).device(card.scaled(trainer.test_images[:9]))
    model = Model(trainer.vae, 4)
    mean, var = model.posterior(x)
    likelihood, kl, _ = density.elbo(model, x, mean, var, Noise(0, 0).normal((card.DRAWS, 9, 2)))
    assert found["refitted_sigma"]["elbo"] == pytest.approx((likelihood - kl).mean(), abs=1.5)


def test_overlap_is_refused(ops, rng, tmp_path):
    run, trainer, dataset = make_run(tmp_path, ops, rng)
    dataset.train.images[17] = dataset.test.images[5]
    with pytest.raises(UserError, match="1 of 12 test images occur in the training set, image 5 first"):
        card.evaluate(run, trainer, dataset, **SETTINGS)
    assert not list(tmp_path.iterdir())


def test_a_collapsed_posterior_is_called_so():
    found = {}
    card.latents(found, np.zeros((50, 3)), np.ones((50, 3)), 0)
    assert found["warning"].startswith("the posterior has collapsed: q(z|x) ignores the image in 3 of 3")
    mean = np.random.default_rng(0).standard_normal((50, 3)) * [1, 1, 0]
    card.latents(found, mean, np.full((50, 3), 0.1), 0)
    assert found["warning"].startswith("the posterior has collapsed in part")
    assert found["latents"]["active"] == [True, True, False]
