"""Estimates of ln p(x) under a trained VAE. When each of them lies: docs/density.md.

    p(x) = E_{z ~ N(0, 1)} p(x|z)
    ELBO <= IWAE-K <= ln p(x), AIS <= ln p(x) on average, reverse AIS >= ln p(x) on average

x (N, H, W, C) are images in [-1, 1] on the model's device, z (K, N, Z) are K codes for each of
them. A code is a few numbers, so all sampling is done in NumPy float64; only the encoder and the
decoder run on the device. Results are nats per image (N,), and never a loss: the constant
(D/2) ln 2 pi that training drops is part of every ln p(x|z). Those of an image do not depend on the
other images.

progress(iterable) is what a long loop goes through; it may show how far the loop has come.
"""

import math

import numpy as np
from scipy.special import logsumexp, softmax

from minivae.ops import HALF_RANGE
from minivae.training.ranks import Alone

ACCEPTANCE = 0.65  # Neal, "MCMC using Hamiltonian dynamics", 2011: the best rate in high dimension
LEAPFROG = 5  # steps of a trajectory
BLOCK = 16  # draws of z for each image that importance sampling hands to the model at once
SIGMOID = 4  # temperatures are spaced as the logistic function on [-4, 4]: arXiv 1611.04273
FIT_STEPS = 150  # of fit_posterior
FIT_RATE = 0.3
ACTIVE = 0.01  # variance over images above which a latent's mean is active: arXiv 1509.00519


class Model:
    """A VAE in test mode, as the estimators see it.

    It sees the codes of one image together, and as many images as ROWS_TOGETHER allows. All pieces
    are of one size, so that an image's bits depend on nothing but its own codes.

    labels, for a VAE that is given labels: those of the images that the methods take, numbers from
    0; there may be more of them. p(x|z) then stands for p(x|z, y). Several ranks all ask for the
    same, and share the pieces.
    """

    def __init__(self, vae, labels=None, ranks=Alone()):
        self.ranks = ranks
        self.vae = vae
        self.labels = labels
        self.batch = vae.ops.ROWS_TOGETHER
        self.xp = vae.ops.xp

    def device(self, array):
        """The array as the model takes it."""
        return self.xp.asarray(array, self.vae.dtype)

    def posterior(self, x):
        """mean, var (N, Z) of q(z|x)."""

        def encode(rows):
            mean, s = self.vae.encoder.forward(x[self.xp.asarray(rows)], train=False)
            self.vae.posterior.forward(mean, s, self.xp.zeros_like(mean))
            return mean, self.vae.posterior.var

        mean, var = self._run(encode, 1, len(x))
        return mean[0], var[0]

    def log_likelihood(self, x, z, gradient=False, progress=iter):
        """ln p(x|z) (K, N); with gradient=True also its gradient in z (K, N, Z)."""
        k, n, latent = z.shape

        def decode(rows):
            codes = self.device(z[:, rows].reshape(-1, latent))
            images = x[self.xp.asarray(np.tile(rows, k))]  # of each code
            labels = self._labels(np.tile(rows, k))
            rec = self.vae.rec(codes, images, train=False, labels=labels)
            if not gradient:
                return [rec]
            return rec, -len(codes) * self.vae.rec_dz(want_dw=False)  # which is of the piece's mean

        rec, *dlog_p = self._run(decode, k, n, progress)
        log_p = -rec - x[0].size / 2 * math.log(2 * math.pi)
        return (log_p, *dlog_p) if gradient else log_p

    def simulate(self, z, noise):
        """Images drawn from p(x|z), z (N, Z); nothing else may use the noise."""

        def draw(rows):
            return [self.vae.draw(self.device(z[rows]), noise.of(rows), self._labels(rows))]

        return self.device(self._run(draw, 1, len(z))[0][0])

    def _labels(self, rows):
        return None if self.labels is None else self.xp.asarray(self.labels[rows], np.int32)

    def _run(self, function, k, n, progress=iter):
        """The arrays (k, n, ...) that function(images) finds for pieces of range(n), on the host.

        function returns arrays (k m, ...) for m images. The last piece starts over at image 0, and
        what it repeats is dropped.
        """
        size = max(1, self.batch // k)
        found = []
        for start in progress(self.ranks.deal(range(0, n, size))):
            arrays = function(np.arange(start, start + size) % n)
            found.append([self.vae.ops.to_host(a).astype(np.float64).reshape(k, size, *a.shape[1:])
                          for a in arrays])
        found = self.ranks.collect(found)
        return [np.concatenate(parts, 1)[:, :n] for parts in zip(*found, strict=True)]


def log_normal(z, mean, var):
    """ln N(z; mean, diag var), summed over the last axis."""
    return -0.5 * (np.log(2 * np.pi * var) + (z - mean) ** 2 / var).sum(-1)


def log_weight(z, log_p, mean, var):
    """ln w (K, N), w = p(x|z) p(z) / N(z; mean, var), from log_p = ln p(x|z)."""
    return log_p + log_normal(z, 0, 1) - log_normal(z, mean, var)


def log_mean_exp(log_w):
    """ln((1/K) sum_k w_k) (N,) of log_w (K, N), the largest weight taken out."""
    return logsumexp(log_w, 0) - math.log(len(log_w))


def effective_samples(log_w):
    """(sum w)^2 / sum w^2 (N,): about how many of the K weights carry the estimate, from 1 to K."""
    return 1 / (softmax(log_w, 0) ** 2).sum(0)


def scaled(images, noise=None):
    """uint8 (N, H, W, C) as float64 in [-1, 1]; noise spreads a pixel over its whole grey level."""
    offset = 0 if noise is None else noise.uniform(images.shape) - 0.5
    return (images + offset) / HALF_RANGE - 1


def bits_per_dim(nats, size):
    """Nats per image on [-1, 1]^D -> bits per dimension of the pixels' density on [0, 256]^D.

    A grey level is 1/127.5 wide in x, so ln p(pixels) = ln p(x) - D ln 127.5.
    """
    return -np.asarray(nats) / (size * math.log(2)) + math.log2(HALF_RANGE)


def elbo(model, x, mean, var, eps, progress=iter):
    """E_q ln p(x|z) and the bound E_q ln p(x, z)/q(z), each (N,), for eps (K, N, Z).

    z = mean + sqrt(var) eps. The first less KL(q || p) estimates the bound too, but less well when
    q is near p(z|x): the noise of the second then vanishes.
    """
    z = mean + np.sqrt(var) * eps
    log_p = model.log_likelihood(x, z, progress=progress)
    return log_p.mean(0), log_weight(z, log_p, mean, var).mean(0)


def kl_per_latent(mean, var):
    """KL(N(mean, var) || N(0, 1)) (N, Z) in nats."""
    return (mean**2 + var - 1 - np.log(var)) / 2


def importance(model, x, mean, var, count, noise, progress=iter):
    """ln w (K, N), w = p(x|z) p(z) / N(z; mean, var), of K = `count` draws z from that normal.

    log_mean_exp of it is a lower bound on average: with q(z|x) the importance-weighted bound
    (arXiv 1509.00519), with mean 0 and var 1 naive Monte Carlo.
    """
    log_w = np.empty((count, len(x)))
    for block in progress(np.array_split(log_w, -(-count // BLOCK))):
        z = mean + np.sqrt(var) * noise.normal((len(block), *mean.shape), 1)
        block[...] = log_weight(z, model.log_likelihood(x, z), mean, var)
    return log_w


def fit_posterior(model, x, mean, var, noise, progress=iter):
    """The mean and var (N, Z) of each image's best Gaussian q(z), found by Adam on its ELBO.

    A step takes two draws of eps and their mirror images. With z = mean + sd eps and
    g = d ln p(x|z)/dz:    dmean = E g - mean      dln sd = E[g eps] sd + 1 - var
    mean moves in units u of its first sd, and the rate falls to zero, so that the draws' noise
    averages out.
    """
    unit = np.sqrt(var)
    q = np.stack([np.zeros_like(mean), np.log(var) / 2])  # u, ln sd
    m = np.zeros_like(q)
    v = np.zeros_like(q)
    for t in progress(range(1, FIT_STEPS + 1)):
        u = q[0]
        sd = np.exp(q[1])
        eps = noise.normal((2, *mean.shape), 1)
        eps = np.concatenate([eps, -eps])
        _, g = model.log_likelihood(x, mean + unit * u + sd * eps, gradient=True)
        du = unit * (g.mean(0) - mean - unit * u)
        dlog_sd = (g * eps).mean(0) * sd + 1 - sd**2
        ascent = np.stack([du, dlog_sd])
        m += 0.1 * (ascent - m)
        v += 0.01 * (ascent**2 - v)
        rate = FIT_RATE * (1 - (t - 1) / FIT_STEPS) ** 2
        q += rate * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
    return mean + unit * q[0], np.exp(2 * q[1])


def temperatures(count):
    """0 = beta_0 < ... < beta_count = 1, close together at both ends."""
    curve = 1 / (1 + np.exp(-np.linspace(-SIGMOID, SIGMOID, count + 1)))
    return (curve - curve[0]) / (curve[-1] - curve[0])


def ais(model, x, z, mean, var, betas, step, noise, adapt=False, progress=iter):
    """Annealed importance sampling (Neal, 2001): ln w (K, N), each transition's acceptance (T, N).

        f_b(z) = base(z)^(1-b) (p(x|z) p(z))^b, base = N(mean, var)
        ln w = sum_t (b_{t+1} - b_t) ln(f_1/f_0)(z_t), t = 0 ... T

    z_t, t > 0, is one Hamiltonian transition from z_{t-1} that leaves f_{b_t} invariant. With betas
    (T+2,) from 0 to 1 and z_0 = z (K, N, Z) from base, E w = p(x), so log_mean_exp is a lower bound
    on average. With betas from 1 to 0 and z from p(z|x), E w = 1/p(x), so -log_mean_exp is an upper
    one. step (T, N) is the leapfrog step in units of the base's sd. `adapt` fills it in, in a run
    whose weights are not to be used, since steps that follow the chain break its invariance.
    """
    log_w = np.zeros(z.shape[:2])
    accepted = np.zeros_like(step)
    scale = np.sqrt(var)
    state = z, *model.log_likelihood(x, z, gradient=True)
    for t in progress(range(len(step))):
        log_w += (betas[t + 1] - betas[t]) * log_weight(*state[:2], mean, var)
        width = step[t, :, None] * scale
        state, rate = hamiltonian(model, x, state, mean, var, betas[t + 1], width, noise)
        accepted[t] = rate.mean(0)
        if adapt:
            step[t + 1 :] = step[t] * np.exp(0.2 * (accepted[t] - ACCEPTANCE))
    return log_w + (betas[-1] - betas[-2]) * log_weight(*state[:2], mean, var), accepted


def hamiltonian(model, x, state, mean, var, beta, step, noise):
    """One transition of state (z, ln p(x|z), its gradient) that leaves f_beta invariant.

    Returns the new state and the probability (K, N) with which it was accepted. Momenta are
    standard normal where z is measured in `step` (N, Z). That is jittered, or a trajectory as long
    as a period would come back to where it began.
    """

    def energy(z, log_p, r):
        log_base = log_normal(z, mean, var)
        log_prior = log_normal(z, 0, 1)
        return (r**2).sum(-1) / 2 - (1 - beta) * log_base - beta * (log_p + log_prior)

    def force(z, g):
        return step * (beta * (g - z) - (1 - beta) * (z - mean) / var)

    z, log_p, g = state
    step = step * (0.8 + 0.4 * noise.uniform((*z.shape[:2], 1), 1))
    r = noise.normal(z.shape, 1)
    start = energy(z, log_p, r)
    for _ in range(LEAPFROG):
        r = r + force(z, g) / 2
        z = z + step * r
        log_p, g = model.log_likelihood(x, z, gradient=True)
        r = r + force(z, g) / 2
    change = start - energy(z, log_p, r)
    change = np.nan_to_num(change, nan=-np.inf)  # not a number: z left the range of float32
    rate = np.exp(np.minimum(change, 0))
    accept = noise.uniform(rate.shape, 1) < rate
    keep = accept[..., None]
    z = np.where(keep, z, state[0])
    log_p = np.where(accept, log_p, state[1])
    g = np.where(keep, g, state[2])
    return (z, log_p, g), rate


def silent(name):
    return iter


def anneal(model, x, mean, var, chains, count, noise, exact=None, stage=silent):
    """AIS of images x from N(mean, var) in `count` transitions: {log_w, acceptance}.

    With a draw `exact` (N, Z) of p(z|x) also reverse_log_w. Images simulated from the model have
    such a draw, the z that made them: on average, log_mean_exp(log_w) <= ln p(x) and
    ln p(x) <= -log_mean_exp(reverse_log_w). Leapfrog steps are found in a run of a quarter of the
    chains, which is thrown away. stage(name) gives the `progress` of each run.
    Source: Grosse, Ghahramani, Adams, arXiv 1511.02543.
    """
    betas = temperatures(count + 1)
    step = np.full((count, len(x)), 0.5)

    def start(k):
        return mean + np.sqrt(var) * noise.normal((k, *mean.shape), 1)

    few = start(max(chains // 4, 1))
    ais(model, x, few, mean, var, betas, step, noise, True, stage("AIS, step sizes"))
    log_w, rate = ais(model, x, start(chains), mean, var, betas, step, noise, False, stage("AIS"))
    found = {"log_w": log_w, "acceptance": rate}
    if exact is not None:
        z = np.repeat(exact[None], chains, 0)
        back = stage("AIS, reverse")
        found["reverse_log_w"], _ = ais(
            model, x, z, mean, var, betas[::-1], step[::-1], noise, False, back)
    return found


def aggregate_kl(mean, var, noise):
    """A lower and an upper value for KL(q(z) || p(z)), and the upper one's standard error.

    q(z) is the mean of q(z|x) over all images, of which there are N here.

    lower: of the Gaussian with q(z)'s mean and covariance, than which no density of these moments
           is closer to N(0, 1)
    upper: E ln(q_N(z) / p(z)) for the mixture q_N of these N, by one draw of each; it exceeds
           q(z)'s on average
    """
    centred = mean - mean.mean(0)
    covariance = centred.T @ centred / len(mean) + np.diag(var.mean(0))
    log_det = np.linalg.slogdet(covariance)[1]
    square = (mean.mean(0) ** 2).sum()
    lower = (np.trace(covariance) + square - len(covariance) - log_det) / 2
    z = mean + np.sqrt(var) * noise.normal(mean.shape)
    ratios = [log_mean_exp(log_normal(row, mean, var)) - log_normal(row, 0, 1) for row in z]
    return float(lower), float(np.mean(ratios)), standard_error(ratios)


def standard_error(values):
    """Of the mean of one value for each image; None for a single image."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def active_units(mean):
    """(Z,) bool: latents whose posterior mean moves with the image."""
    return mean.var(0) > ACTIVE
