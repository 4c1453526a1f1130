"""Estimates of ln p(x) under a trained VAE, each with its error; when each of them lies: docs/density.md.

    p(x) = E_{z ~ N(0, 1)} p(x|z)      ELBO <= IWAE-K <= ln p(x), AIS <= ln p(x) on average, reverse AIS >= ln p(x)

Here x (N, H, W, C) are images in [-1, 1] on the model's device and z (K, N, Z) are K codes of each. Codes are few
numbers, so all sampling is done in NumPy float64 and only encoder and decoder run on the device. Results are nats per
image (N,), and never a loss: the constant (D/2) ln 2 pi that training drops is part of every ln p(x|z).
"""

import math

import numpy as np
from scipy.special import logsumexp, softmax
from tqdm import tqdm

from minivae.ops import philox

ACCEPTANCE = 0.65  # Neal, "MCMC using Hamiltonian dynamics", 2011: the best rate in high dimension
LEAPFROG = 5  # steps of a trajectory
BLOCK = 16  # draws of z for each image that importance sampling hands to the model at once
SIGMOID = 4  # AIS spaces its temperatures as the logistic function on [-4, 4]: Wu et al., arXiv 1611.04273
FIT_STEPS, FIT_RATE = 150, 0.3  # of fit_posterior
ACTIVE = 0.01  # a latent is active if its mean's variance over images exceeds this: Burda et al., arXiv 1509.00519


class Noise:
    """Random numbers of the "density" stream, a fresh step of it for each call; one Noise for each `stage`."""

    def __init__(self, seed, stage):
        self.seed, self.step = seed, stage << 32

    def normal(self, shape):
        return self._draw(philox.normals, shape)

    def uniform(self, shape):
        """In the open interval (0, 1)."""
        return self._draw(philox.uniforms, shape)

    def _draw(self, draws, shape):
        self.step += 1
        return draws(self.seed, philox.STREAMS["density"], self.step, math.prod(shape)).reshape(shape)


class Model:
    """A VAE in test mode, as the estimators see it: it runs `batch` images at a time."""

    def __init__(self, vae, batch):
        self.vae, self.batch, self.xp = vae, batch, vae.ops.xp

    def device(self, array):
        """The array as the model takes it."""
        return self.xp.asarray(array, self.vae.dtype)

    def posterior(self, x):
        """mean, var (N, Z) of q(z|x)."""
        found = []
        for rows, count in self._pieces(len(x)):
            mean, s = self.vae.encoder.forward(x[self.xp.asarray(rows)], train=False)
            self.vae.posterior.forward(mean, s, self.xp.zeros_like(mean))
            found.append([self._host(a, count) for a in (mean, self.vae.posterior.var)])
        return tuple(np.concatenate(a) for a in zip(*found, strict=True))

    def log_likelihood(self, x, z, gradient=False):
        """ln p(x|z) (K, N), and its gradient in z (K, N, Z) if asked."""
        (k, n, latent), found = z.shape, []
        codes, constant = z.reshape(-1, latent), x[0].size / 2 * math.log(2 * math.pi)
        for rows, count in self._pieces(k * n):
            a = self.vae.generator.forward(self.device(codes[rows]), train=False)
            rec = self.vae.likelihood.forward(a, x[self.xp.asarray(rows % n)], train=False)
            found.append([-self._host(rec, count) - constant])
            if gradient:  # the backward pass is that of the mean of rec over the piece
                dz = self.vae.generator.backward(self.vae.likelihood.backward(), want_dw=False)
                found[-1].append(-len(rows) * self._host(dz, count))
        values, *gradients = (np.concatenate(a) for a in zip(*found, strict=True))
        return (values.reshape(k, n), gradients[0].reshape(z.shape)) if gradient else values.reshape(k, n)

    def simulate(self, z, noise):
        """Images drawn from p(x|z), z (N, Z)."""
        images, eps = [], noise.normal((len(z), *self.vae.shape))
        for rows, count in self._pieces(len(z)):
            a = self.vae.generator.forward(self.device(z[rows]), train=False)
            x_hat, var = self._host(self.vae.likelihood.mean(a), count), self._host(self.vae.likelihood.var(a), count)
            images.append(x_hat + np.sqrt(var) * eps[rows[:count]])
        return self.device(np.concatenate(images))

    def _pieces(self, total):
        """(row numbers, how many of them are new): pieces of one size, so the last one starts over at row 0."""
        size = min(self.batch, total)
        for start in range(0, total, size):
            yield np.arange(start, start + size) % total, min(size, total - start)

    def _host(self, array, count):
        return self.vae.ops.to_host(array)[:count].astype(np.float64)


def progress(iterable, stage):
    return tqdm(iterable, desc=stage, disable=None, leave=False)


def log_normal(z, mean, var):
    """ln N(z; mean, diag var), summed over the last axis."""
    return -0.5 * (np.log(2 * np.pi * var) + (z - mean) ** 2 / var).sum(-1)


def log_mean_exp(log_w):
    """ln((1/K) sum_k w_k) (N,) of log_w (K, N), the largest weight taken out."""
    return logsumexp(log_w, 0) - math.log(len(log_w))


def effective_samples(log_w):
    """(sum w)^2 / sum w^2 (N,): of K weights, about how many carry the estimate; 1 means that one does."""
    return 1 / (softmax(log_w, 0) ** 2).sum(0)


def scaled(images, noise=None):
    """uint8 (N, H, W, C) as float64 in [-1, 1]; with noise each pixel spread evenly over its grey level."""
    offset = 0 if noise is None else noise.uniform(images.shape) - 0.5
    return (images + offset) / 127.5 - 1


def bits_per_dim(nats, size):
    """Nats per image of a density on [-1, 1]^D -> bits per dimension of the pixels' density on [0, 256]^D.

    A grey level is 1/127.5 wide in x, so ln p(pixels) = ln p(x) - D ln 127.5.
    """
    return -np.asarray(nats) / (size * math.log(2)) + math.log2(127.5)


def elbo(model, x, mean, var, eps, stage="ELBO"):
    """E_q ln p(x|z) and KL(q || p), each (N,), and ln p(x, z)/q(z) (K, N), at z = mean + sqrt(var) eps, eps (K, N, Z).

    The bound is the first less the second, and the third's average over draws too: the better of the two estimates when
    q is near p(z|x), since its noise then vanishes.
    """
    log_p, log_w = np.empty(eps.shape[:2]), np.empty(eps.shape[:2])
    for k in progress(range(len(eps)), stage):
        z = (mean + np.sqrt(var) * eps[k])[None]
        log_p[k] = model.log_likelihood(x, z)[0]
        log_w[k] = log_p[k] + (log_normal(z, 0, 1) - log_normal(z, mean, var))[0]
    return log_p.mean(0), kl_per_latent(mean, var).sum(1), log_w


def kl_per_latent(mean, var):
    """KL(N(mean, var) || N(0, 1)) (N, Z) in nats."""
    return (mean**2 + var - 1 - np.log(var)) / 2


def importance(model, x, mean, var, count, noise, stage):
    """ln w (K, N), w = p(x|z) p(z) / N(z; mean, var) for z from that normal.

    log_mean_exp of it is a lower bound on average: with q(z|x) the importance-weighted bound (arXiv 1509.00519), with
    mean 0 and var 1 naive Monte Carlo.
    """
    log_w = np.empty((count, len(x)))
    for block in progress(np.array_split(log_w, -(-count // BLOCK)), stage):
        z = mean + np.sqrt(var) * noise.normal((len(block), *mean.shape))
        block[...] = model.log_likelihood(x, z) + log_normal(z, 0, 1) - log_normal(z, mean, var)
    return log_w


def fit_posterior(model, x, mean, var, noise):
    """The mean and var (N, Z) of each image's best Gaussian q(z): Adam on its ELBO, with two draws and their mirror
    images a step.

    With z = mean + sd eps and g = d ln p(x|z)/dz:    dmean = E g - mean      dln sd = E[g eps] sd + 1 - var
    mean moves in units of its first sd, and the rate falls to zero, so that the draws' noise averages out.
    """
    unit, u, log_sd = np.sqrt(var), np.zeros_like(mean), np.log(var) / 2
    m, v = np.zeros((2, *mean.shape)), np.zeros((2, *mean.shape))
    for t in progress(range(1, FIT_STEPS + 1), "fit of q"):
        sd, eps = np.exp(log_sd), noise.normal((2, *mean.shape))
        eps = np.concatenate([eps, -eps])
        _, g = model.log_likelihood(x, mean + unit * u + sd * eps, gradient=True)
        ascent = np.stack([unit * (g.mean(0) - mean - unit * u), (g * eps).mean(0) * sd + 1 - sd**2])
        m += 0.1 * (ascent - m)
        v += 0.01 * (ascent**2 - v)
        rate = FIT_RATE * (1 - (t - 1) / FIT_STEPS) ** 2
        move = rate * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
        u, log_sd = u + move[0], log_sd + move[1]
    return mean + unit * u, np.exp(2 * log_sd)


def temperatures(count):
    """0 = beta_0 < ... < beta_count = 1, close together at both ends."""
    curve = 1 / (1 + np.exp(-np.linspace(-SIGMOID, SIGMOID, count + 1)))
    return (curve - curve[0]) / (curve[-1] - curve[0])


def ais(model, x, z, mean, var, betas, step, noise, adapt=False, stage="AIS"):
    """Annealed importance sampling (Neal, 2001): ln w (K, N) and the mean acceptance of each transition (T, N).

        f_b(z) = base(z)^(1-b) (p(x|z) p(z))^b, base = N(mean, var)
        ln w = sum_t (b_{t+1} - b_t) ln(f_1/f_0)(z_t), t = 0 ... T

    z_t, t > 0, is one Hamiltonian transition from z_{t-1} that leaves f_{b_t} invariant. betas (T+2,) from 0 to 1 with
    z_0 = z (K, N, Z) from base: E w = p(x), so log_mean_exp is a lower bound on average. betas from 1 to 0 with z from
    p(z|x): E w = 1/p(x), so -log_mean_exp is an upper one. step (T, N): the leapfrog step in units of the base's sd;
    `adapt` fills it in, in a run that is not to be used, since steps that follow the chain break its invariance.
    """
    log_w, accepted, scale = np.zeros(z.shape[:2]), np.zeros_like(step), np.sqrt(var)
    state = z, *model.log_likelihood(x, z, gradient=True)

    def log_ratio(z, log_p, _):
        return log_p + log_normal(z, 0, 1) - log_normal(z, mean, var)

    for t in progress(range(len(step)), stage):
        log_w += (betas[t + 1] - betas[t]) * log_ratio(*state)
        state, rate = hamiltonian(model, x, state, mean, var, betas[t + 1], step[t, :, None] * scale, noise)
        accepted[t] = rate.mean(0)
        if adapt:
            step[t + 1 :] = step[t] * np.exp(0.2 * (accepted[t] - ACCEPTANCE))
    return log_w + (betas[-1] - betas[-2]) * log_ratio(*state), accepted


def hamiltonian(model, x, state, mean, var, beta, step, noise):
    """One transition of state (z, ln p(x|z), its gradient) that leaves f_beta invariant, and its acceptance (K, N).

    Momenta are standard normal where z is measured in `step` (N, Z); that is jittered, or a trajectory as long as a
    period would come back to where it began.
    """

    def energy(z, log_p, r):
        log_base, log_prior = log_normal(z, mean, var), log_normal(z, 0, 1)
        return (r**2).sum(-1) / 2 - (1 - beta) * log_base - beta * (log_p + log_prior)

    def force(z, g):
        return step * (beta * (g - z) - (1 - beta) * (z - mean) / var)

    z, log_p, g = state
    step = step * (0.8 + 0.4 * noise.uniform((*z.shape[:2], 1)))
    r = noise.normal(z.shape)
    start = energy(z, log_p, r)
    for _ in range(LEAPFROG):
        r = r + force(z, g) / 2
        z = z + step * r
        log_p, g = model.log_likelihood(x, z, gradient=True)
        r = r + force(z, g) / 2
    change = np.nan_to_num(start - energy(z, log_p, r), nan=-np.inf)  # not a number: it left the range of float32
    rate = np.exp(np.minimum(change, 0))
    accept = noise.uniform(rate.shape) < rate
    keep = accept[..., None]
    return (np.where(keep, z, state[0]), np.where(accept, log_p, state[1]), np.where(keep, g, state[2])), rate


def anneal(model, x, mean, var, chains, count, noise, exact=None):
    """AIS of images x from N(mean, var) in `count` transitions: {log_w, acceptance}, and reverse_log_w if given a draw
    `exact` (N, Z) of p(z|x).

    Steps are found in a run with a quarter of the chains, which is thrown away. Images simulated from the model have
    such a draw, the z that made them: log_mean_exp(log_w) <= ln p(x) <= -log_mean_exp(reverse_log_w), both on average.
    Source: Grosse, Ghahramani, Adams, arXiv 1511.02543.
    """
    betas, step = temperatures(count + 1), np.full((count, len(x)), 0.5)

    def start(k):
        return mean + np.sqrt(var) * noise.normal((k, *mean.shape))

    ais(model, x, start(max(chains // 4, 1)), mean, var, betas, step, noise, adapt=True, stage="AIS, step sizes")
    log_w, rate = ais(model, x, start(chains), mean, var, betas, step, noise)
    found = {"log_w": log_w, "acceptance": rate}
    if exact is not None:
        z = np.repeat(exact[None], chains, 0)
        found["reverse_log_w"], _ = ais(model, x, z, mean, var, betas[::-1], step[::-1], noise, stage="AIS, reverse")
    return found


def aggregate_kl(mean, var, noise):
    """(lower, upper) for KL(q(z) || p(z)), q(z) the mean of q(z|x) over all images, from N of them.

    lower: of the Gaussian with q(z)'s mean and covariance, than which no density of these moments is closer to N(0, 1)
    upper: E ln(q_N(z) / p(z)) for the mixture q_N of these N, by one draw of each; it exceeds q(z)'s on average
    """
    centred = mean - mean.mean(0)
    covariance = centred.T @ centred / len(mean) + np.diag(var.mean(0))
    lower = (np.trace(covariance) + (mean.mean(0) ** 2).sum() - len(covariance) - np.linalg.slogdet(covariance)[1]) / 2
    z = mean + np.sqrt(var) * noise.normal(mean.shape)
    ratios = [log_mean_exp(log_normal(row, mean, var)) - log_normal(row, 0, 1) for row in z]
    return float(lower), float(np.mean(ratios))


def active_units(mean):
    """(Z,) bool: latents whose posterior mean moves with the image."""
    return mean.var(0) > ACTIVE
