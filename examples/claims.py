"""What Rui Shu's post says of density estimation, each claim by an experiment: docs/claims.md is
written by this script.

    python examples/claims.py [N ...]

runs claims N (all nine), prints what each finds, and writes its picture, docs/claims-N.png, and its
section of the page. A function's docstring is the section's text; what it returns stands below.
Images are house numbers of 16 x 16 pixels.
"""

import math
import re
import sys
import time
from functools import lru_cache
from unittest import mock

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pages
from PIL import Image
from scipy import stats
from scipy.special import logsumexp

from minivae.density import estimates
from minivae.density.baselines import FullGaussian
from minivae.images import housenumbers
from minivae.images.data import hashes
from minivae.noise import Noise, numbered
from minivae.ops import HALF_RANGE, VAR_FLOOR, numpy_ops, plain
from minivae.training import figures
from minivae.training.evaluation import Evaluation
from minivae.training.settings import Config
from minivae.training.trainer import Trainer
from minivae.vae import Widths

WIDTHS = Widths((8, 16, 32), 64, (64, 32, 16))
HALF_LN_2PI = math.log(2 * math.pi) / 2


class LinearGaussian:
    """x = z w + sigma noise, z ~ N(0, 1): p(x) and p(z|x) are normal, so that every claim can be
    held to the truth.

    The rows of w are orthogonal: p(z|x) is a diagonal normal. It has what estimates.Model has.
    """

    def __init__(self, latent, size, sigma, seed=0):
        self.rng = np.random.default_rng(seed)
        self.w = 2 * np.linalg.qr(self.rng.standard_normal((size, latent)))[0].T
        self.sigma = sigma
        self.var = 1 / (1 + (self.w**2).sum(1) / sigma**2)  # of p(z|x)

    def images(self, count):
        z = self.rng.standard_normal((count, len(self.w)))
        return z @ self.w + self.sigma * self.rng.standard_normal((count, self.w.shape[1]))

    def posterior(self, x):
        return x @ self.w.T / self.sigma**2 * self.var

    def log_likelihood(self, x, z, gradient=False, progress=iter):
        error = x - z @ self.w
        log_p = estimates.log_normal(error, 0, self.sigma**2 * np.ones(x.shape[-1]))
        return (log_p, error @ self.w.T / self.sigma**2) if gradient else log_p

    def log_p(self, x):
        covariance = self.w.T @ self.w + self.sigma**2 * np.eye(x.shape[-1])
        return stats.multivariate_normal(np.zeros(x.shape[-1]), covariance).logpdf(x)


@lru_cache
def house_numbers(split, count):
    """(N, 16, 16, 3) uint8."""
    images, _ = housenumbers.make(split, count=count)
    return images.reshape(count, 16, 2, 16, 2, 3).mean((2, 4)).round().astype(np.uint8)


def training(images, latent, sigma, seed, steps, lr=5e-3):
    """The Trainer after each step, batches of 32; the rate falls to zero over the last quarter."""
    about = {
        "data": "",
        "train_sha256": "",
        "test_sha256": "",
        "eval_every": 1,
        "checkpoint_every": 1,
    }
    config = Config(
        **about,
        steps=steps,
        batch_size=min(32, len(images)),
        latent=latent,
        lr=lr,
        lr_end=0.0,
        seed=seed,
        kl="sample",
        log_every=100,
        shape=images.shape[1:],
        sigma=sigma,
    )
    trainer = Trainer(config, images, numpy_ops, widths=WIDTHS)
    for _ in range(steps):
        trainer.step()
        yield trainer


def trained(*settings, **options):
    """The model that training ends with."""
    *_, trainer = training(*settings, **options)
    return trainer.vae


def kl_of_normals(mean, var, other_mean, other_var):
    """KL(N(mean, var) || N(other_mean, other_var)), summed over the last axis."""
    return ((var + (mean - other_mean) ** 2) / other_var - 1 + np.log(other_var / var)).sum(-1) / 2


def plus_minus(values):
    """The mean and its standard error over the last axis, as text: two digits of the error."""
    error = estimates.standard_error(values)
    digits = max(0, 1 - math.floor(math.log10(error))) if error else 3
    return f"{np.mean(values):,.{digits}f} ± {error:.{digits}f}"


def log_joint(x, weights, means, covariances):
    """ln of weight times density (K, N) of each component at each point."""
    parts = zip(means, covariances, strict=True)
    log_p = [stats.multivariate_normal(m, c).logpdf(x) for m, c in parts]
    return np.log(weights)[:, None] + log_p


def fit_mixture(x, k, rounds, rng):
    """Weights, means and covariances of k Gaussians, by EM."""
    means = x[rng.choice(len(x), k, replace=False)]
    weights = np.full(k, 1 / k)
    covariances = np.repeat(np.cov(x.T)[None], k, 0)
    for _ in range(rounds):
        joint = log_joint(x, weights, means, covariances)
        r = np.exp(joint - logsumexp(joint, 0))  # E: responsibilities (K, N)
        total = r.sum(1)
        weights = total / len(x)  # M
        means = r @ x / total[:, None]
        d = x - means[:, None]
        covariances = np.einsum("kn,kni,knj->kij", r, d, d) / total[:, None, None]
        covariances += 1e-4 * np.eye(2)
    return weights, means, covariances


def mixture(count=1000, seeds=5, components=(1, 2, 4, 8, 16), rounds=100):
    """A mixture of Gaussians is never worse than the Gaussian

    Points on a noisy ring in the plane. EM by hand, started at random points with the Gaussian's
    covariance. The difference of mean ln p is the difference of KL(p_hat || p), since the entropy
    of p_hat drops out.
    """

    gains = np.empty((2, len(components), seeds))
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        angle = rng.uniform(0, 2 * np.pi, 2 * count)
        points = np.stack([np.cos(angle), np.sin(angle)], 1) + 0.15 * rng.standard_normal(
            (2 * count, 2)
        )
        halves = points[:count], points[count:]
        for i, k in enumerate(components):
            fitted = fit_mixture(halves[0], k, rounds, rng)
            gains[:, i, seed] = [logsumexp(log_joint(x, *fitted), 0).mean() for x in halves]
    gains -= gains[:, :1]  # one component is the Gaussian
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    grid = np.stack(np.meshgrid(*2 * [np.linspace(-1.6, 1.6, 80)]), -1)
    left.contour(
        *np.moveaxis(grid, -1, 0),
        logsumexp(log_joint(grid.reshape(-1, 2), *fitted), 0).reshape(80, 80),
        np.arange(-6, 1),
    )
    left.plot(*halves[0][:300].T, ".k", ms=2)
    for gain, name in zip(gains, ("the points fitted", "new points"), strict=True):
        right.errorbar(components, gain.mean(1), gain.std(1, ddof=1) / seeds**0.5, label=name)
    right.set(xlabel="components", ylabel="gain over the Gaussian, nats", xscale="log")
    right.legend()
    text = (
        f"With {components[-1]} components KL(p_hat || p) is smaller by {plus_minus(gains[0, -1])} "
        f"nats on the points fitted, by {plus_minus(gains[1, -1])} on new ones ({seeds} seeds)."
    )
    return figure, text, gains[0].min() > -1e-9


def three_forms(count=200):
    """Three forms of the bound agree, and its gap is KL(q || p(z|x))

    E ln p(x,z)/q(z) = E ln p(x|z) - KL(q || p(z)) = ln p(x) - KL(q || p(z|x)), for random q, in a
    linear-Gaussian model whose ln p(x) is known. Expectations are exact: points at ±sqrt(Z) along
    each axis integrate quadratics.
    """
    model = LinearGaussian(3, 12, 0.5)
    x = model.images(count)
    mean = model.posterior(x) + 0.7 * model.var**0.5 * model.rng.standard_normal((count, 3))
    var = model.var * model.rng.uniform(0.2, 3, (count, 3))
    points = 3**0.5 * np.concatenate([np.eye(3), -np.eye(3)])
    log_likelihood, first = estimates.elbo(
        model, x, mean, var, np.repeat(points[:, None], count, 1)
    )
    second = log_likelihood - estimates.kl_per_latent(mean, var).sum(1)
    gap = kl_of_normals(mean, var, model.posterior(x), model.var)
    third = model.log_p(x) - gap
    apart = max(np.abs(first - second).max(), np.abs(first - third).max())
    figure, axis = plt.subplots(figsize=(4.5, 3.6))
    axis.plot(gap, model.log_p(x) - first, ".")
    axis.set(xlabel="KL(q || p(z|x)), exact", ylabel="ln p(x) - bound")
    return (
        figure,
        f"For {count} random q the three differ by at most {apart:.1e} nats.",
        apart < 1e-10,
    )


def inference(seeds=5, steps=3000):
    """Maximizing the bound over q is posterior inference

    q = N(mean, sd²) starts at the prior and follows the reparameterized gradient of its bound, one
    draw of eps a step, at a rate that falls. Nothing tells it the posterior, which it finds.
    """
    figure, axis = plt.subplots(figsize=(5.5, 3.6))
    ends = []
    for seed in range(seeds):
        model = LinearGaussian(4, 12, 0.7, seed)
        x = model.images(1)[0]
        mean, log_sd = np.zeros((2, 4))
        gaps = []
        for t in range(steps):
            gaps.append(kl_of_normals(mean, np.exp(2 * log_sd), model.posterior(x), model.var))
            eps = model.rng.standard_normal(4)
            sd = np.exp(log_sd)
            _, g = model.log_likelihood(x, mean + sd * eps, gradient=True)
            g = g - (mean + sd * eps)  # of ln p(x, z)
            rate = 0.01 / (1 + t / 300)
            mean = mean + rate * g
            log_sd = log_sd + rate * (g * eps * sd + 1)
        axis.semilogy(gaps)
        ends.append((gaps[0], gaps[-1]))
    axis.set(xlabel="steps", ylabel="KL(q || p(z|x)), nats")
    first, last = np.array(ends).T
    fall = f"from {plus_minus(first)} to {plus_minus(last)} nats"
    text = f"KL(q || p(z|x)) falls {fall} ({seeds} seeds)."
    return figure, text, bool((last < 0.05 * first).all())


def two_gradients(draws=20_000, dimensions=(1, 2, 5, 10, 20, 50, 100), seeds=5):
    """The reparameterized gradient varies far less than the score function's

    d/dmean of E_q [ln p(x,z) - ln q(z)], p(x|z) = N(z, 1) in Z dimensions, q = N(0, 1), x = (1,
    ..., 1). Reparameterized: the derivative of ln p(x,z) in z. Score function: [ln p(x,z) - ln
    q(z)] (z - mean). Both have mean x; what differs is the variance, here of one component.
    """
    variances = np.empty((2, len(dimensions), seeds))
    errors = np.empty_like(variances)
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        for i, z_size in enumerate(dimensions):
            z = rng.standard_normal((draws, z_size))  # mean 0, sd 1: z is eps
            reparameterized = (
                1 - z
            ) - z  # of ln p(x|z) and of ln p(z); ln q(z) does not depend on the mean
            score = (-((1 - z) ** 2).sum(1) / 2 - z_size * HALF_LN_2PI)[
                :, None
            ] * z  # ln p(z) - ln q(z) = 0
            for j, gradient in enumerate((reparameterized, score)):
                variances[j, i, seed] = gradient.var(0).mean()
                errors[j, i, seed] = (gradient.mean() - 1) / (
                    variances[j, i, seed] / gradient.size
                ) ** 0.5
    figure, axis = plt.subplots(figsize=(5.5, 3.6))
    for variance, name in zip(variances, ("reparameterized", "score function"), strict=True):
        axis.loglog(dimensions, variance.mean(1), "o-", label=name)
    axis.set(xlabel="latents", ylabel="variance of the gradient")
    axis.legend()
    ratio = variances[1, -1] / variances[0, -1]
    text = (
        f"With {dimensions[-1]} latents the score function's variance is {plus_minus(ratio)} times as "
        f"large ({seeds} seeds of {draws:,} draws). Averages differ from the truth by at most "
        f"{np.abs(errors).max():.1f} standard errors."
    )
    return figure, text, bool((variances[1] > variances[0]).all() and np.abs(errors).max() < 6)


def draw_codes(axis, vae, images):
    """Ellipses of q(z|x) at one and two standard deviations."""
    t = np.linspace(0, 2 * np.pi, 60)
    circle = np.stack([np.cos(t), np.sin(t)], 1)
    posterior = estimates.Model(vae).posterior(figures.to_model(vae, images))
    for i, (mean, var) in enumerate(zip(*posterior, strict=True)):
        for radius in (1, 2):
            axis.plot(*(mean + radius * np.sqrt(var) * circle).T, f"C{i}", lw=1)


def tug_of_war(sigmas=(30, 10, 3, 1, 0.2, 0.05), steps=400, seeds=3):
    """As sigma falls, reconstruction wins the tug of war with the KL

    Four images in a latent space of two dimensions, and a model of its own for each sigma. Ellipses
    are q(z|x) at one and two sd (seed 0). Where sigma is large the KL wins, and the four codes lie
    on the prior, on top of each other; as it falls they part. The post goes from 3 to 0.05; for
    images of 768 values 3 is narrow already, so the series begins at 30.
    """
    four = house_numbers("train", 100)[:4]
    size = four[0].size
    found = np.empty((2, len(sigmas), seeds))
    figure, axes = plt.subplots(1, len(sigmas), figsize=(11, 2.4), sharex=True, sharey=True)
    for i, sigma in enumerate(sigmas):
        for seed in range(seeds):
            vae = trained(np.tile(four, (8, 1, 1, 1)), 2, float(sigma), seed, steps, lr=1e-2)
            rec, kl = Evaluation(vae, np.tile(four, (50, 1, 1, 1)), 0).losses()
            found[:, i, seed] = 2 * sigma**2 * (rec / size - math.log(sigma)), kl
            if seed == 0:
                draw_codes(axes[i], vae, four)
        mse, kl = found[:, i].mean(1)
        axes[i].set_title(f"sigma {sigma:g}\nsquared error {mse:.4f}\nKL {kl:.2f}", fontsize=9)
        axes[i].set_aspect("equal")
    mse, kl = found
    text = (
        f"From sigma {sigmas[0]:g} to {sigmas[-1]:g} the KL rises from {plus_minus(kl[0])} to "
        f"{plus_minus(kl[-1])} nats and the mean squared error of a value falls from "
        f"{plus_minus(mse[0])} to {plus_minus(mse[-1])} ({seeds} seeds)."
    )
    return figure, text, bool((kl[-1] > kl[0]).all() and (mse[-1] < mse[0]).all())


def grey_image(floor, seed, steps):
    """Losses of a model of one grey image, x = 0 in six values: x_hat = tanh(z w), q = N(0, var).

    Only s, of var = softplus(s) + floor, and ln sigma are trained, by the definition's operations
    in float32. It stops where the loss is not finite.
    """
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((1, 6)).astype(np.float32)
    values, grads, m, v = np.zeros((4, 2), np.float32)
    mean, z, var, dmean, ds = np.zeros((5, 1, 1), np.float32)
    rec, kl = np.zeros((2, 1), np.float32)
    x, x_hat, da = np.zeros((3, 1, 1, 2, 3), np.float32)
    b, db = np.zeros((2, 3), np.float32)
    lr, rate = np.array([0.05]), np.zeros(1)
    losses = []
    with mock.patch.object(plain, "VAR_FLOOR", np.float32(floor)), np.errstate(all="ignore"):
        while len(losses) < steps and np.isfinite(losses[-1:]).all():
            s = values[:1, None]
            eps = rng.standard_normal((1, 1)).astype(np.float32)
            plain.latent(mean, s, eps, True, z, var, kl)
            plain.tanh_gaussian((z @ w).reshape(x.shape), b, x, values[1:], 1, x_hat, rec, da, db)
            plain.latent_dx(da.reshape(1, 6) @ w.T, mean, s, eps, True, 1, z, var, dmean, ds)
            plain.log_sigma_dx(rec, values[1:], 6, 1, grads[1:])
            grads[0] = ds[0, 0]
            plain.adam_rate(lr, np.array([len(losses)]), 0.5, 0.999, rate)
            plain.adam(values, grads, m, v, rate, 0.5, 0.999, 1e-8)
            losses.append(float(rec[0] + kl[0]))
    return losses


def few_images(seed, steps, points=10):
    """sigma, and bounds on ln p of 16 images as training sees them and of others, at `points` steps."""
    few, others = house_numbers("train", 100)[:16], house_numbers("test", 200)
    found = []
    for step, trainer in enumerate(training(few, 8, "learned", seed, steps), 1):
        if step % (steps // points) == 0:
            sigma = float(np.exp(trainer.vae.likelihood.log_sigma.value[0]))
            losses = sum(trainer.losses()), sum(Evaluation(trainer.vae, others, 0).losses())
            found.append((sigma, *(-loss - few[0].size * HALF_LN_2PI for loss in losses)))
    return np.array(found)


def without_a_floor(steps=4000, vae_steps=2000, seeds=3):
    """Without a floor the variance collapses, and a learned sigma memorizes

    Left: one grey image and a learned sigma. The likelihood has no greatest value: sigma and the
    variance of q shrink together until softplus(s) is zero in float32, and its logarithm is not
    finite. With the floor of 1e-5 the variance stays, and with it the loss. Right: a VAE with a
    learned sigma on 16 house numbers. ln p of these 16 goes up and up (its bound, here), ln p of
    others goes down.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    ends = []
    for floor, name in ((0, "no floor"), (VAR_FLOOR, "floor 1e-5")):
        runs = [grey_image(floor, seed, steps) for seed in range(seeds)]
        ends.append([len(losses) for losses in runs])
        left.plot(runs[0], label=name)
    left.set(xlabel="steps", ylabel="loss, nats (seed 0)")
    left.legend()
    curves = np.array([few_images(seed, vae_steps) for seed in range(seeds)])
    at = vae_steps // curves.shape[1] * np.arange(1, curves.shape[1] + 1)
    for i, name in ((1, "the 16 images"), (2, "others")):
        error = curves[:, :, i].std(0, ddof=1) / seeds**0.5
        right.errorbar(at, curves[:, :, i].mean(0), error, label=name)
    right.set(xlabel="steps", ylabel="bound on ln p, nats")
    right.set_yscale("symlog", linthresh=1000)
    right.set_yticks([-1e5, -1e4, -1e3, 0, 1e3])
    right.legend()
    first, last = curves[:, 0], curves[:, -1]
    text = (
        f"Without the floor the loss is not finite after {min(ends[0]):,} to {max(ends[0]):,} "
        f"steps, with it never in {steps:,}. From step {at[0]:,} to {at[-1]:,} sigma falls from "
        f"{plus_minus(first[:, 0])} to {plus_minus(last[:, 0])}, the bound on the 16 images rises "
        f"by {plus_minus(last[:, 1] - first[:, 1])} nats, and on others it falls by "
        f"{plus_minus(first[:, 2] - last[:, 2])} ({seeds} seeds)."
    )
    collapse = max(ends[0]) < steps and min(ends[1]) == steps
    return (
        figure,
        text,
        bool(collapse and (last[:, 1] > first[:, 1]).all() and (last[:, 0] < first[:, 0]).all()),
    )


def dirty_secret(steps=1500, shown=10, train=3000):
    """The dirty secret: what is shown as a sample is the mean of one

    From above: test images, x_hat (what everyone shows), a draw from the model as it was trained,
    N(x_hat, 1), and a draw with the sigma that suits this decoder best.
    """
    vae = trained(house_numbers("train", train), 8, 1.0, 0, steps)
    x = figures.to_model(vae, house_numbers("test", 200))
    x_hat = vae.decode(vae.encode(x))
    mse = ((x - x_hat) ** 2).mean((1, 2, 3))
    sigma = mse.mean() ** 0.5
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((2, shown, *x.shape[1:]))
    rows = np.stack(
        [x[:shown], x_hat[:shown], x_hat[:shown] + noise[0], x_hat[:shown] + sigma * noise[1]]
    )
    figure, axis = plt.subplots(figsize=(8, 3.3))
    axis.imshow(
        np.concatenate(list(np.concatenate(list(rows.swapaxes(0, 1)), 2)), 0).clip(-1, 1) / 2 + 0.5
    )
    axis.set_yticks(
        np.arange(4) * 16 + 8, ["test image", "x_hat", "N(x_hat, 1)", f"sigma {sigma:.2f}"]
    )
    axis.set_xticks([])
    size = x[0].size
    gain = -size * math.log(sigma) - mse * size * (1 / sigma**2 - 1) / 2
    text = (
        f"The refitted sigma is {sigma:.3f}: {sigma * HALF_RANGE:.1f} grey levels, where 1 is "
        f"{HALF_RANGE:g}. It is worth {plus_minus(gain)} nats of ln p(x|z) per test image of {size} "
        f"values ({len(x)} images)."
    )
    return figure, text, bool(sigma < 0.5 and gain.mean() > 0)


def naive(count=32, most=10_000, chains=16, transitions=100):
    """The logarithm of a naive Monte Carlo estimate is far below ln p(x)

    A linear-Gaussian model of 6 latents and 40 values, sigma = 0.1. Naive: z from the prior. IWAE:
    z from a q that is wrong by half an sd in its means and too narrow by a tenth. AIS: from the
    same q.
    """
    model = LinearGaussian(6, 40, 0.1)
    x = model.images(count)
    truth = model.log_p(x)
    mean = model.posterior(x) + 0.5 * model.var**0.5 * model.rng.choice([-1, 1], (count, 6))
    var = np.tile(0.8 * model.var, (count, 1))
    samples = np.unique(np.geomspace(1, most, 9).astype(int))
    figure, axis = plt.subplots(figsize=(5.5, 3.6))
    missing = {}
    for name, m, v in (("naive", 0 * mean, 1 + 0 * var), ("IWAE", mean, var)):
        log_w = estimates.importance(model, x, m, v, most, Noise(0, name, numbered(count)))
        short = np.array([truth - estimates.log_mean_exp(log_w[:k]) for k in samples])
        missing[name] = short[-1]
        axis.errorbar(samples, short.mean(1), short.std(1, ddof=1) / count**0.5, label=name)
    annealed = estimates.anneal(model, x, mean, var, chains, transitions, Noise(0, "AIS", numbered(count)))
    missing["AIS"] = truth - estimates.log_mean_exp(annealed["log_w"])
    axis.axhline(missing["AIS"].mean(), color="C2", label=f"AIS, {chains} chains of {transitions}")
    axis.set(xlabel="samples", ylabel="ln p(x) - estimate, nats", xscale="log", yscale="symlog")
    axis.set_ylim(bottom=-1)
    axis.legend()
    short = {name: plus_minus(values) for name, values in missing.items()}
    text = (
        f"With {most:,} samples the naive estimate is {short['naive']} nats too low and IWAE "
        f"{short['IWAE']}; AIS is {short['AIS']} too low ({count} images)."
    )
    return figure, text, missing["naive"].mean() > 1 > abs(missing["AIS"].mean())


def likelihood_and_kl(steps=1500, train=3000):
    """Minimizing KL(p_hat || p) is maximizing likelihood, and a Gaussian may win

    Left: the grey levels of house numbers, and normals of many widths. KL(p_hat || p) + mean ln p
    is the same number for each, minus the entropy of p_hat. Right: a Gaussian with a full
    covariance, and a VAE with 10 latents and a fitted sigma, on the same images: ln p of new ones,
    for the VAE its evidence lower bound.
    """
    images, test = house_numbers("train", train), house_numbers("test", 200)
    p_hat = np.bincount(images.ravel(), minlength=256) / images.size
    widths = np.linspace(20, 120, 60)
    log_p = stats.norm.logpdf(np.arange(256)[:, None], images.mean(), widths)
    log_p -= logsumexp(log_p, 0)
    here = p_hat > 0
    kl = (p_hat[here, None] * (np.log(p_hat[here])[:, None] - log_p[here])).sum(0)
    likelihood = p_hat @ log_p
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    left.plot(widths, kl, label="KL(p_hat || p)")
    left.plot(widths, likelihood - likelihood.max(), label="mean ln p less its greatest value")
    left.axvline(widths[kl.argmin()], color="k", lw=0.5)
    left.set(xlabel="sd of the normal, grey levels", ylabel="nats")
    left.legend()
    x = estimates.scaled(test)
    gaussian = FullGaussian(estimates.scaled(images)).log_density(x)
    model = estimates.Model(trained(images, 10, "optimal", 0, steps))
    device_x = model.device(x)
    mean, var = model.posterior(device_x)
    _, bound = estimates.elbo(model, device_x, mean, var, Noise(0, "ELBO", hashes(test)).normal((8, *mean.shape), 1))
    names = ("full Gaussian", "VAE, bound")
    bits = [estimates.bits_per_dim(value, x[0].size) for value in (gaussian, bound)]
    right.bar(names, [b.mean() for b in bits], yerr=[estimates.standard_error(b) for b in bits])
    right.set_ylabel("bits per dimension (less is better)")
    spread = np.ptp(kl + likelihood)
    text = (
        f"The sum varies by {spread:.1e} nats over the widths. ln p of a new image is "
        f"{plus_minus(gaussian)} nats under the Gaussian and at least {plus_minus(bound)} under the "
        f"VAE, {plus_minus(gaussian - bound)} less; that is {bits[0].mean():.3f} and "
        f"{bits[1].mean():.3f} bits per dimension ({len(x)} images, {steps:,} steps)."
    )
    return figure, text, bool(spread < 1e-10 and kl.argmin() == likelihood.argmax())


CLAIMS = [
    mixture,
    three_forms,
    inference,
    two_gradients,
    tug_of_war,
    without_a_floor,
    dirty_secret,
    naive,
    likelihood_and_kl,
]


def section(number, claim, text):
    title, _, what = claim.__doc__.partition("\n\n")
    what = re.sub(r"\s*\n\s*", " ", what.strip())
    return f"## {number}. {title}\n\n{what}\n\n**{text}**\n\n![{title}](claims-{number}.png)"


def run(number):
    start = time.monotonic()
    claim = CLAIMS[number - 1]
    figure, text, holds = claim()
    figure.tight_layout()
    path = pages.DOCS / f"claims-{number}.png"
    figure.savefig(path, dpi=80, bbox_inches="tight")
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
    pages.write_between("claims.md", f"claim {number}", section(number, claim, text))
    verdict = "it holds" if holds else "IT DOES NOT HOLD"
    seconds = time.monotonic() - start
    print(f"{number}. {claim.__name__}, {seconds:.0f} s, {verdict}\n{text}\n", flush=True)


if __name__ == "__main__":
    for number in map(int, sys.argv[1:] or range(1, len(CLAIMS) + 1)):
        run(number)
