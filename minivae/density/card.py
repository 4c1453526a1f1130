"""The density card of a run: every estimate of ln p(x) on its test images, kept in density.json.

    bounds, annealed, simulated, latents, reference_protocol:
        {"rows": {id: row}, "figures": {id: number}}

A row says what it is: exact, a lower bound, a lower bound on average (its average over the noise is
below ln p(x)), or an upper one. Nats are those of the density of x in [-1, 1]^D, bits per dimension
those of the pixels' density in [0, 256]^D.
"""

import json
import math

import numpy as np

from minivae.density import baselines, estimates
from minivae.density.estimates import Model, Noise, effective_samples, log_mean_exp, scaled
from minivae.density.report import Stages, draw, print_card
from minivae.files import refuse_unwritable, write_text
from minivae.images.data import hashes, test_subset, unseen
from minivae.sigmas import FITTED_SIGMAS
from minivae.training.evaluation import Evaluation

DRAWS = 10  # of z for each image's ELBO
NAIVE = 1000  # of z for naive Monte Carlo
GAUSSIAN_IMAGES = 20000  # at most, for the Gaussian baseline

EXACT = "exact"
BOUND = "lower bound"
AVERAGE = "lower bound on average"
ROWS = {  # id: its label, in which the card's own settings are filled in, and what it is
    "uniform": ("uniform density", EXACT),
    "gaussian": ("full Gaussian of the training pixels", EXACT),
    "naive": ("naive Monte Carlo, {naive_draws} draws", AVERAGE),
    "elbo": ("ELBO, {elbo_draws} draws", BOUND),
    "iwae": ("IWAE-{importance}", AVERAGE),
    "gaussian_dequantized": ("full Gaussian, dequantized pixels", EXACT),
    "elbo_dequantized": ("ELBO, dequantized pixels", BOUND),
    "elbo_refitted": ("ELBO, sigma refitted: {refitted_sigma:.4f}", BOUND),
    "elbo_fitted": ("ELBO of a q fitted to each image", BOUND),
    "ais": ("log-likelihood by AIS", AVERAGE),
    "reverse_ais": ("log-likelihood by reverse AIS", "upper bound on average"),
}


def evaluate(run, vae, dataset, step, **settings):
    """Print the card of `vae` after `step` steps, write it into the run directory, and return it.

    settings: images, how many test images, in the order of test_subset, without those that occur
    in the training set; importance, draws of z for IWAE; ais_images, how many of the images AIS
    sees; ais_chains for each, of ais_steps temperatures; seed.
    UserError if no test image is left, or if the run directory cannot be written.
    """
    refuse_unwritable(run.folder)
    train = dataset.train.images
    subset = test_subset(dataset.test.images)
    test = subset[unseen(subset, train)]
    sigma = vae.sigma
    fixed = sigma not in FITTED_SIGMAS
    card = {
        "run": str(run.folder), "step": step, "sigma": sigma, "sigma_value": sigma_value(vae),
        "train": {"images": len(train), "sha256": dataset.train.sha256},
        "test": {"images": len(dataset.test.images), "sha256": dataset.test.sha256},
        "left_out": len(subset) - len(test), "dimensions": math.prod(test.shape[1:]),
        **settings, "elbo_draws": DRAWS, "naive_draws": NAIVE, "notes": [],
    }
    model = Model(vae)
    stage = Stages(16 + fixed)
    stage("loss by the reference's protocol")
    rec, kl = Evaluation(vae, test, run.config.seed).losses()
    figures = {"loss": rec + kl, "rec": rec, "KL": kl}
    card["reference_protocol"] = {"images": len(test), **section(card, {}, figures)}
    test = test[: card["images"]]
    names = list(hashes(test))
    mean, var = bounds(card, model, test, names, train, stage, fixed)
    latents(card, mean, var, names)
    few = slice(card["ais_images"])
    x = model.device(scaled(test[few]))
    annealed(card, model, x, mean[few], var[few], names[few], stage)
    simulated(card, model, len(x), stage)
    stage("the card")
    print_card(card)
    draw(run / "density.png", card)
    write_text(run / "density.json", json.dumps(card, indent=2) + "\n")
    return card


def sigma_value(vae):
    """p(x|z)'s sigma in test mode; None for "pixel" and "spectrum", which have one for each value of each image."""
    if vae.sigma in ("pixel", "spectrum"):
        return None
    return math.exp(float(vae.likelihood.log_sigma.value[0]))


def section(card, nats, figures):
    """A part of the card: rows, in the order of ROWS, of {id: nats (N,) of each image}; figures."""
    rows = {}
    for name, (label, kind) in ROWS.items():
        if name in nats:
            mean = float(np.mean(nats[name]))
            rows[name] = {
                "label": label.format(**card), "nats_per_image": mean,
                "standard_error": estimates.standard_error(nats[name]),
                "bits_per_dim": float(estimates.bits_per_dim(mean, card["dimensions"])),
                "images": len(nats[name]), "kind": kind,
            }
    return {"rows": rows, "figures": {name: float(value) for name, value in figures.items()}}


def bounds(card, model, test, names, train, stage, fixed):
    """Baselines, ELBO and importance-weighted bound on all test images; mean and var of q(z|x)."""
    size = card["dimensions"]
    noise = Noise(card["seed"], 0, names)
    x = model.device(scaled(test))
    eps = noise.normal((DRAWS, len(test), model.vae.latent), 1)
    mean, var = model.posterior(x)
    _, elbo = estimates.elbo(model, x, mean, var, eps, stage("ELBO"))
    log_w = estimates.importance(model, x, mean, var, card["importance"], noise, stage("IWAE"))
    dequantized = scaled(test, noise)
    y = model.device(dequantized)
    progress = stage("ELBO, dequantized pixels")
    _, spread = estimates.elbo(model, y, *model.posterior(y), eps, progress)
    nats = {"uniform": np.full(len(test), baselines.uniform(size)), "elbo": elbo,
            "iwae": log_mean_exp(log_w), "elbo_dequantized": spread}
    progress = stage("full Gaussian")
    if baselines.fits_in_memory(size):
        step = -(-len(train) // GAUSSIAN_IMAGES)
        gaussian = baselines.FullGaussian(train[::step], progress)
        nats["gaussian"] = gaussian.log_density(scaled(test))
        nats["gaussian_dequantized"] = gaussian.log_density(dequantized)
    else:
        card["notes"].append(f"the full Gaussian is left out: its covariance of {size} x {size} "
                             "values would take more than a quarter of the memory")
    kl = estimates.kl_per_latent(mean, var).sum(1)
    if fixed:
        nats["elbo_refitted"] = refitted(
            card, model, train[: card["images"]], elbo + kl, stage("refit of sigma")) - kl
    card["bounds"] = section(card, nats, {
        "expected_log_likelihood": elbo.mean() + kl.mean(), "KL": kl.mean(),
        "effective_importance_samples": effective_samples(log_w).mean()})
    return mean, var


def refitted(card, model, train, log_likelihood, progress):
    """E_q ln p(x|z) (N,) with the one sigma that suits decoder and q best, from that with the old.

    E_q ln p(x|z) = -D mse / (2 sigma^2) - (D/2) ln(2 pi sigma^2) gives mse, and with it any other
    sigma's. The best sigma is the root of mse on training images.
    """
    size = card["dimensions"]
    old = float(card["sigma"])
    x = model.device(scaled(train))
    mean, var = model.posterior(x)
    eps = Noise(card["seed"], 1, hashes(train)).normal((2, *mean.shape), 1)

    def mse(log_likelihood):
        return -2 * old**2 * (log_likelihood / size + math.log(2 * math.pi * old**2) / 2)

    of_train, _ = estimates.elbo(model, x, mean, var, eps, progress)
    best = mse(of_train.mean())
    card["refitted_sigma"] = math.sqrt(best)
    return -size * (mse(log_likelihood) / best + math.log(2 * math.pi * best)) / 2


def latents(card, mean, var, names):
    """What the code says. One image can tell its KL alone."""
    kl = estimates.kl_per_latent(mean, var).mean(0).tolist()
    card["latents"] = {"kl": kl, **section(card, {}, {})}
    if len(mean) == 1:
        card["notes"].append("one image cannot tell which latents are active, nor KL(q(z) || p(z))")
        return
    active = estimates.active_units(mean)
    lower, upper, error = estimates.aggregate_kl(mean, var, Noise(card["seed"], 2, names))
    figures = {"aggregate_KL_lower": lower, "aggregate_KL_upper": upper,
               "aggregate_KL_upper_standard_error": error}
    card["latents"] = {"kl": kl, "active": active.tolist(), **section(card, {}, figures)}
    if not active.all():
        part = " in part" if active.any() else ""
        card["notes"].append(
            f"warning: the posterior has collapsed{part}: q(z|x) ignores the image in "
            f"{np.count_nonzero(~active)} of {len(active)} latents")


def annealed(card, model, x, mean, var, names, stage):
    """All lower bounds and AIS on the same few test images, and what ln p(x) - ELBO is made of."""
    noise = Noise(card["seed"], 3, names)
    prior = np.zeros_like(mean), np.ones_like(var)
    naive = estimates.importance(model, x, *prior, NAIVE, noise, stage("naive Monte Carlo"))
    log_w = estimates.importance(model, x, mean, var, card["importance"], noise, stage("IWAE"))
    eps = noise.normal((DRAWS, *mean.shape), 1)
    q = estimates.fit_posterior(model, x, mean, var, noise, stage("fit of q"))
    found = estimates.anneal(
        model, x, *q, card["ais_chains"], card["ais_steps"], noise, stage=stage)
    _, elbo = estimates.elbo(model, x, mean, var, eps)
    _, best = estimates.elbo(model, x, *q, eps, stage("ELBO of the fitted q"))
    log_p = log_mean_exp(found["log_w"])
    nats = {"naive": log_mean_exp(naive), "elbo": elbo, "iwae": log_mean_exp(log_w),
            "elbo_fitted": best, "ais": log_p}
    card["annealed"] = section(card, nats, {
        "gap": (log_p - elbo).mean(), "approximation_gap": (log_p - best).mean(),
        "amortization_gap": (best - elbo).mean(),
        "effective_naive_samples": effective_samples(naive).mean(), **mixing(found)})
    card["annealed"] |= {"elbo_each": elbo.tolist(), "ais_each": log_p.tolist()}


def simulated(card, model, count, stage):
    """AIS from both ends on images drawn from the model: how wrong AIS is with these settings."""
    names = estimates.numbered(count)
    noise = Noise(card["seed"], 4, names)
    z = noise.normal((count, model.vae.latent))
    x = model.simulate(z, Noise(card["seed"], 5, names))
    q = estimates.fit_posterior(model, x, *model.posterior(x), noise, stage("fit of q, simulated"))
    found = estimates.anneal(model, x, *q, card["ais_chains"], card["ais_steps"], noise, z, stage)
    lower = log_mean_exp(found["log_w"])
    upper = -log_mean_exp(found["reverse_log_w"])
    card["simulated"] = section(card, {"ais": lower, "reverse_ais": upper}, {
        "BDMC_gap": (upper - lower).mean(), "largest_BDMC_gap": (upper - lower).max(),
        **mixing(found)})


def mixing(found):
    """How many of the chains carry the estimate, and how many transitions were accepted."""
    return {"effective_AIS_chains": effective_samples(found["log_w"]).mean(),
            "AIS_acceptance": found["acceptance"].mean()}
