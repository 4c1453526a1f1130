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
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from scipy import stats
from scipy.special import logsumexp

from minivae.density import estimates
from minivae.density.baselines import FullGaussian
from minivae.density.estimates import Noise
from minivae.images import housenumbers
from minivae.ops import HALF_RANGE, VAR_FLOOR, numpy_ops, plain
from minivae.training.evaluation import Evaluation
from minivae.training.settings import Config
from minivae.training.trainer import Trainer
from minivae.vae import Widths

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "claims.md"
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

    def log_likelihood(self, x, z, gradient=False):
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


def trainer_of(images, latent, sigma, seed, batch=64, lr=2e-3):
    config = Config(
        "housenumbers",
        1,
        batch,
        latent,
        lr,
        seed,
        "sample",
        100,
        1,
        1,
        images.shape[1:],
        "",
        "",
        sigma,
    )
    return Trainer(config, images, numpy_ops, widths=WIDTHS)


def log_p_bound(vae, images):
    """The evidence lower bound of images, nats per image, a mean over them; one draw for each."""
    return -sum(Evaluation(vae, images, 0).losses()) - images[0].size * HALF_LN_2PI


def kl_of_normals(mean, var, other_mean, other_var):
    """KL(N(mean, var) || N(other_mean, other_var)), summed over the last axis."""
    return ((var + (mean - other_mean) ** 2) / other_var - 1 + np.log(other_var / var)).sum(-1) / 2


def plus_minus(values):
    """The mean and its standard error over the last axis, as text: two digits of the error."""
    error = estimates.standard_error(values)
    digits = max(0, 1 - math.floor(math.log10(error))) if error else 3
    return f"{np.mean(values):,.{digits}f} ± {error:.{digits}f}"


def mixture(count=1000, seeds=5, components=(1, 2, 4, 8, 16), rounds=100):
    """A mixture of Gaussians is never worse than the Gaussian

    Points on a noisy ring in the plane. EM by hand, started at random points with the Gaussian's
    covariance. The difference of mean ln p is the difference of KL(p_hat || p), since the entropy
    of p_hat drops out.
    """

    def log_joint(x, weights, means, covariances):
        log_p = [
            stats.multivariate_normal(m, c).logpdf(x)
            for m, c in zip(means, covariances, strict=True)
        ]
        return np.log(weights)[:, None] + log_p

    def fit(x, k, rng):
        means = x[rng.choice(len(x), k, replace=False)]
        weights, covariances = np.full(k, 1 / k), np.repeat(np.cov(x.T)[None], k, 0)
        for _ in range(rounds):
            joint = log_joint(x, weights, means, covariances)
            r = np.exp(joint - logsumexp(joint, 0))  # E: responsibilities (K, N)
            total = r.sum(1)
            weights = total / total.sum()  # M
            means = r @ x / total[:, None]
            d = x - means[:, None]
            covariances = np.einsum("kn,kni,knj->kij", r, d, d) / total[
                :, None, None
            ] + 1e-4 * np.eye(2)
        return weights, means, covariances

    gains = np.empty((2, len(components), seeds))
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        angle = rng.uniform(0, 2 * np.pi, 2 * count)
        points = np.stack([np.cos(angle), np.sin(angle)], 1) + 0.15 * rng.standard_normal(
            (2 * count, 2)
        )
        halves = points[:count], points[count:]
        for i, k in enumerate(components):
            mixture = fit(halves[0], k, rng)
            gains[:, i, seed] = [logsumexp(log_joint(x, *mixture), 0).mean() for x in halves]
    gains -= gains[:, :1]  # one component is the Gaussian
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    grid = np.stack(np.meshgrid(*2 * [np.linspace(-1.6, 1.6, 80)]), -1)
    left.contour(
        *np.moveaxis(grid, -1, 0),
        logsumexp(log_joint(grid.reshape(-1, 2), *mixture), 0).reshape(80, 80),
        np.arange(-6, 1),
    )
    left.plot(*halves[0][:300].T, ".k", ms=2)
    for gain, name in zip(gains, ("the points fitted", "new points"), strict=True):
        right.errorbar(components, gain.mean(1), gain.std(1, ddof=1) / seeds**0.5, label=name)
    right.set(xlabel="components", ylabel="gain over the Gaussian, nats", xscale="log")
    right.legend()
    best = f"With {components[-1]} components KL(p_hat || p) is smaller by {plus_minus(gains[0, -1])} nats on the points"
    return (
        figure,
        f"{best} fitted, by {plus_minus(gains[1, -1])} on new ones ({seeds} seeds).",
        gains[0].min() > -1e-9,
    )


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
    text = f"KL(q || p(z|x)) falls from {plus_minus(first)} to {plus_minus(last)} nats ({seeds} seeds)."
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
        f"With {dimensions[-1]} latents the score function's variance is {plus_minus(ratio)} times as large ({seeds} "
        f"seeds of {draws:,} draws). Averages differ from the truth by {np.abs(errors).max():.1f} standard errors at "
        "most."
    )
    return figure, text, bool((variances[1] > variances[0]).all() and np.abs(errors).max() < 6)


def tug_of_war(sigmas=(3, 1, 0.5, 0.2, 0.1, 0.05), steps=400, seeds=3):
    """As sigma falls, reconstruction wins the tug of war with the KL

    Four images in a latent space of two dimensions, a model of its own for each sigma: ellipses are
    q(z|x) at one and two sd (seed 0). At sigma = 3 the KL wins and all four codes are the prior; at
    0.05 they are points far apart.
    """
    four = house_numbers("train", 1000)[:4]
    found = np.empty((2, len(sigmas), seeds))
    figure, axes = plt.subplots(1, len(sigmas), figsize=(10, 2.2), sharex=True, sharey=True)
    for seed in range(seeds):
        for i, sigma in enumerate(sigmas):
            trainer = trainer_of(np.tile(four, (16, 1, 1, 1)), 2, sigma, seed)
            for _ in range(steps):
                trainer.step()
            rec, kl = Evaluation(trainer.vae, four, 0).losses()
            size = four[0].size
            found[:, i, seed] = 2 * sigma**2 * (rec / size - math.log(sigma)), kl
            if seed == 0:
                x = (four / HALF_RANGE - 1).astype(np.float32)
                for m, v in zip(*estimates.Model(trainer.vae, 4).posterior(x), strict=True):
                    for radius in (1, 2):
                        t = np.linspace(0, 2 * np.pi, 60)
                        line = m + radius * np.sqrt(v) * np.stack([np.cos(t), np.sin(t)], 1)
                        axes[i].plot(*line.T, lw=1)
                axes[i].set_title(f"sigma {sigma:g}", fontsize=9)
    for axis, (mse, kl) in zip(axes, found.mean(2).T, strict=True):
        axis.set_xlabel(f"squared error {mse:.3f}\nKL {kl:.2f}", fontsize=8)
        axis.set_aspect("equal")
    mse, kl = found
    text = (
        f"From sigma {sigmas[0]:g} to {sigmas[-1]:g} the KL rises from {plus_minus(kl[0])} to {plus_minus(kl[-1])} "
        f"nats and the mean squared error of a value falls from {plus_minus(mse[0])} to {plus_minus(mse[-1])} "
        f"({seeds} seeds)."
    )
    return figure, text, bool((kl[-1] > kl[0]).all() and (mse[-1] < mse[0]).all())


def one_point(floor, seed, steps, rate=0.05):
    """Losses of x_hat = tanh(z w) with a learned sigma on a single image of six values: nothing has
    to be told apart.

    The operations are those of the definition, in float32; it stops where the loss is not finite.
    """
    rng = np.random.default_rng(seed)
    x = rng.uniform(-0.5, 0.5, (1, 1, 2, 3)).astype(np.float32)
    w = np.arctanh(x.reshape(1, 6))
    values = np.array([0, 0, 0], np.float32)  # mean, s, ln sigma
    m, v, grads = np.zeros((3, 3), np.float32)
    z, var, dmean, ds = np.zeros((4, 1, 1), np.float32)
    kl, rec = np.zeros((2, 1), np.float32)
    x_hat, da = np.zeros((2, 1, 1, 2, 3), np.float32)
    losses = []
    plain.VAR_FLOOR = floor
    for t in range(steps):
        mean, s = values[:2].reshape(2, 1, 1)
        eps = rng.standard_normal((1, 1)).astype(np.float32)
        plain.latent(mean, s, eps, True, z, var, kl)
        plain.tanh_gaussian(
            (z @ w).reshape(x.shape),
            np.zeros(3, np.float32),
            x,
            values[2:],
            1,
            x_hat,
            rec,
            da,
            np.zeros(3, np.float32),
        )
        losses.append(float(rec[0] + kl[0]))
        if not math.isfinite(losses[-1]):
            break
        plain.latent_dx(da.reshape(1, 6) @ w.T, mean, s, eps, True, 1, z, var, dmean, ds)
        plain.log_sigma_dx(rec, values[2:], 6, 1, grads[2:])
        grads[:2] = dmean[0, 0], ds[0, 0]
        plain.adam(values, grads, m, v, np.array([rate]), np.array([t]), 0.5, 0.999, 1e-8)
    plain.VAR_FLOOR = VAR_FLOOR
    return losses


def without_a_floor(steps=4000, vae_steps=1500, seeds=3):
    """Without a floor the variance collapses, and a learned sigma memorizes

    Left: one image and a learned sigma. The likelihood has no greatest value: z, sigma and the
    variance of q shrink together until softplus(s) is zero in float32, and its logarithm is not
    finite. With the floor of 1e-5 the variance stays, and with it the loss. Right: a VAE with a
    learned sigma on 16 house numbers. ln p of these 16 goes up and up (its bound, here), ln p of
    others goes down.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    ends = []
    with np.errstate(all="ignore"):
        for seed in range(seeds):
            bare, floored = (one_point(floor, seed, steps) for floor in (0, VAR_FLOOR))
            ends.append(len(bare))
            left.plot(bare, "C3", label="no floor" if seed == 0 else None)
            left.plot(floored, "C0", label="floor 1e-5" if seed == 0 else None)
    left.set(xlabel="steps", ylabel="loss, nats")
    left.legend()
    holds = max(ends) < steps and len(floored) == steps
    few, others = house_numbers("train", 1000)[:16], house_numbers("test", 200)
    curves = np.empty((seeds, 10, 3))
    for curve in curves:
        trainer = trainer_of(few, 8, "learned", len(ends), batch=16)
        for row in curve:
            for _ in range(max(1, vae_steps // len(curve))):
                trainer.step()
            sigma = float(np.exp(trainer.vae.likelihood.log_sigma.value[0]))
            row[:] = sigma, *(log_p_bound(trainer.vae, images) for images in (few, others))
    at = np.arange(1, 11) * vae_steps // 10
    for i, name in ((1, "the 16 images"), (2, "others")):
        right.errorbar(
            at, curves[:, :, i].mean(0), curves[:, :, i].std(0, ddof=1) / seeds**0.5, label=name
        )
    right.set(xlabel="steps", ylabel="bound on ln p, nats", yscale="symlog")
    right.legend()
    first, last = curves[:, 0], curves[:, -1]
    text = (
        f"Without the floor the loss is not finite after {min(ends):,} to {max(ends):,} steps, with it never in "
        f"{steps:,}. From step {at[0]} to {at[-1]} sigma falls from {plus_minus(first[:, 0])} to "
        f"{plus_minus(last[:, 0])}, the bound on the 16 images rises by {plus_minus(last[:, 1] - first[:, 1])} nats, "
        f"and on others it falls by {plus_minus(first[:, 2] - last[:, 2])} ({seeds} seeds)."
    )
    return (
        figure,
        text,
        bool(holds and (last[:, 1] > first[:, 1]).all() and (last[:, 0] < first[:, 0]).all()),
    )


def dirty_secret(steps=1500, shown=10):
    """The dirty secret: what is shown as a sample is the mean of one

    From above: test images, x_hat (what everyone shows), a draw from the model as it was trained,
    N(x_hat, 1), and a draw with the sigma that suits this decoder best.
    """
    images, test = house_numbers("train", 3000), house_numbers("test", 200)
    trainer = trainer_of(images, 8, 1.0, 0)
    for _ in range(steps):
        trainer.step()
    x = (test / HALF_RANGE - 1).astype(np.float32)
    x_hat = trainer.vae.decode(trainer.vae.encode(x))
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
        f"The refitted sigma is {sigma:.3f}: {sigma * HALF_RANGE:.1f} grey levels, where 1 is {HALF_RANGE:g}. It is "
        f"worth {plus_minus(gain)} nats of ln p(x|z) per test image of {size} values ({len(x)} images)."
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
    for part, (name, m, v) in enumerate((("naive", 0 * mean, 1 + 0 * var), ("IWAE", mean, var))):
        log_w = estimates.importance(model, x, m, v, most, Noise(0, part))
        short = np.array([truth - estimates.log_mean_exp(log_w[:k]) for k in samples])
        missing[name] = short[-1]
        axis.errorbar(samples, short.mean(1), short.std(1, ddof=1) / count**0.5, label=name)
    annealed = estimates.anneal(model, x, mean, var, chains, transitions, Noise(0, 2))
    missing["AIS"] = truth - estimates.log_mean_exp(annealed["log_w"])
    axis.axhline(missing["AIS"].mean(), color="C2", label=f"AIS, {chains} chains of {transitions}")
    axis.set(xlabel="samples", ylabel="ln p(x) - estimate, nats", xscale="log", yscale="symlog")
    axis.legend()
    short = {name: plus_minus(values) for name, values in missing.items()}
    text = (
        f"With {most:,} samples the naive estimate is {short['naive']} nats too low and IWAE {short['IWAE']}; AIS is "
        f"{short['AIS']} too low ({count} images)."
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
    gaussian = FullGaussian(images).log_density(x)
    trainer = trainer_of(images, 10, "optimal", 0)
    for _ in range(steps):
        trainer.step()
    model = estimates.Model(trainer.vae, len(x))
    device_x = model.device(x)
    mean, var = model.posterior(device_x)
    _, bound = estimates.elbo(model, device_x, mean, var, Noise(0, 1).normal((8, *mean.shape)))
    names = ("full Gaussian", "VAE, bound")
    bits = [estimates.bits_per_dim(value, x[0].size) for value in (gaussian, bound)]
    right.bar(names, [b.mean() for b in bits], yerr=[estimates.standard_error(b) for b in bits])
    right.set_ylabel("bits per dimension (less is better)")
    spread = np.ptp(kl + likelihood)
    text = (
        f"The sum varies by {spread:.1e} nats over the widths. ln p of a new image is {plus_minus(gaussian)} nats under "
        f"the Gaussian and at least {plus_minus(bound)} under the VAE, {plus_minus(gaussian - bound)} less; that is "
        f"{bits[0].mean():.3f} and {bits[1].mean():.3f} bits per dimension ({len(x)} images, {steps:,} steps)."
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
    return f"## {number}. {title}\n\n{what}\n\n**{text}**\n\n![{title}](claims-{number}.png)\n"


def run(number):
    start = time.monotonic()
    claim = CLAIMS[number - 1]
    figure, text, holds = claim()
    path = DOCS / f"claims-{number}.png"
    figure.savefig(path, dpi=80, bbox_inches="tight")
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
    print(
        f"{number}. {claim.__doc__.splitlines()[0]}, {time.monotonic() - start:.0f} s: "
        f"{'it holds' if holds else 'IT DOES NOT HOLD'}\n{text}\n",
        flush=True,
    )
    start, end = f"<!-- claim {number} -->\n", f"<!-- /claim {number} -->"
    before, rest = PAGE.read_text().split(start)
    PAGE.write_text(before + start + section(number, claim, text) + end + rest.split(end)[1])


if __name__ == "__main__":
    for number in map(int, sys.argv[1:] or range(1, len(CLAIMS) + 1)):
        run(number)
