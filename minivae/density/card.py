"""The density card of a run: every estimate of ln p(x) on its test images, kept in density.json.

    bounds, annealed, simulated, latents, reference_protocol, and labels where the model is given them:
        {"rows": {id: row}, "figures": {id: number}}

A row says what it is: exact, a lower bound, a lower bound on average (its average over the noise is
below ln p(x)), or an upper one. Nats are those of the density of x in [-1, 1]^D, bits per dimension
those of the pixels' density in [0, 256]^D; pixels are dequantized unless a row says otherwise.
"""

import json
import math

import numpy as np
from scipy.special import logsumexp

from minivae.density import baselines, estimates, labels, score
from minivae.density.estimates import Model, effective_samples, log_mean_exp, scaled
from minivae.density.report import Stages, draw, print_card
from minivae.files import refuse_unwritable, write_text
from minivae.images.data import hashes, unseen
from minivae.images.given import test_images
from minivae.images.labels import places
from minivae.images.stream import MEMORY_FRACTION, memory
from minivae.noise import Noise, numbered
from minivae.sigmas import FITTED_SIGMAS
from minivae.training.evaluation import Evaluation
from minivae.training.ranks import Alone
from minivae.training.statistics import in_place

NAIVE = 1000  # draws of z for naive Monte Carlo
BASELINE_IMAGES = 20000  # at most, that the baselines are fitted to
COMPONENTS = 8  # of the mixture
BLOCK = 1000  # images that are dequantized at once

EXACT = "exact"
BOUND = "lower bound"
AVERAGE = "lower bound on average"
ROWS = {  # id: its label, in which the card's own settings are filled in, and what it is
    "uniform": ("uniform density", EXACT),
    "gaussian": ("full Gaussian", EXACT),
    "student": ("Student-t, diagonal in DCT x colour", EXACT),
    "mixture": (f"mixture of {COMPONENTS} of those", EXACT),
    "naive": ("naive Monte Carlo, {naive_draws} draws", AVERAGE),
    "elbo": ("ELBO, {elbo_draws} draws", BOUND),
    "iwae": ("IWAE-{importance}", AVERAGE),
    "iwae_given": ("IWAE-{label_draws}, the label given", AVERAGE),
    "iwae_summed": ("IWAE-{label_draws}, the label summed out", AVERAGE),
    "elbo_levels": ("ELBO of the grey levels themselves", BOUND),
    "elbo_moving": ("ELBO with moving statistics", BOUND),
    "elbo_refitted": ("ELBO, sigma refitted: {refitted_sigma:.4f}", BOUND),
    "elbo_fitted": ("ELBO of a q fitted to each image", BOUND),
    "ais": ("log-likelihood by AIS", AVERAGE),
    "reverse_ais": ("log-likelihood by reverse AIS", "upper bound on average"),
}


def evaluate(run, vae, moving, dataset, step, ranks=Alone(), **settings):
    """Print the card of `vae` after `step` steps, write it into the run directory, and return it.

    vae has re-estimated statistics; moving: training's own. settings: images, how many test images,
    in the order of test_images, without copies and those that occur in the training set;
    importance, draws of z for IWAE; ais_images, how many of the images AIS sees; ais_chains for
    each, of ais_steps temperatures; seed. Of several ranks, which share the work, rank 0 alone
    writes. UserError if no test image is left, or if the run directory cannot be written.
    """
    refuse_unwritable(run.folder)
    train = dataset.train.images
    every = test_images(dataset)
    kept = unseen(every.images, train)
    left_out = sorted(set(range(len(every.images))) - set(kept))
    split = every.take(kept)
    test = split.images
    known = run.config.label_names
    model = Model(vae, places(split, known), ranks)
    of_train = Model(vae, places(dataset.train, known), ranks)
    sigma = vae.sigma
    card = {
        "run": str(run.folder), "step": step, "sigma": sigma, "sigma_value": sigma_value(vae),
        "train": {"images": len(train), "sha256": dataset.train.sha256},
        "test": {"images": len(dataset.test.images), "sha256": dataset.test.sha256},
        "left_out": [every.names[row] for row in left_out],
        "dimensions": math.prod(test.shape[1:]), **settings,
        "elbo_draws": score.DRAWS, "naive_draws": NAIVE, "label_draws": labels.DRAWS, "notes": [],
    }
    stage = Stages(18 + (sigma not in FITTED_SIGMAS) + (len(known) > 0))
    stage("loss by the reference's protocol")
    with in_place(vae, moving):
        rec, kl = Evaluation(vae, test, run.config.seed, model.labels).losses()
    figures = {"loss": rec + kl, "rec": rec, "KL": kl}
    card["reference_protocol"] = {"images": len(test), **section(card, {}, figures)}
    test = test[: card["images"]]
    names = list(hashes(test))
    found = bounds(card, model, of_train, moving, test, names, train, stage)
    latents(card, found["mean"], found["var"], names)
    if known:
        without_label(card, model, of_train, found, names, stage)
    annealed(card, model, found, names, stage)
    simulated(card, model, stage)
    stage("the card")
    print_card(card)
    if ranks.rank == 0:
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
    known = {name: float(value) for name, value in figures.items() if value is not None}
    return {"rows": rows, "figures": known}


def bounds(card, model, of_train, moving, test, names, train, stage):
    """Baselines, ELBO and importance-weighted bound on all test images: what score.bounds found,

    and with it `baselines`, {id: nats (N,)}.
    """
    found = score.bounds(model, test, names, card, stage)
    seed = card["seed"]

    def elbo(x, name):
        return score.elbo(model, x, *model.posterior(x), names, seed, stage(name))[1]

    nats = {name: found[name] for name in ("elbo", "iwae")}
    nats["elbo_levels"] = elbo(model.device(scaled(test)), "ELBO, grey levels")
    with in_place(model.vae, moving):
        nats["elbo_moving"] = elbo(found["x"], "ELBO, moving statistics")
    found["baselines"] = without_network(card, found["pixels"], train, stage)
    if card["sigma"] not in FITTED_SIGMAS:
        nats["elbo_refitted"] = refitted(card, of_train, train[: card["images"]], found["elbo"] + found["kl"],
                                         stage("refit of sigma")) - found["kl"]
    kl = found["kl"].mean()
    card["bounds"] = section(card, nats | found["baselines"], {
        "expected_log_likelihood": found["elbo"].mean() + kl, "KL": kl,
        "effective_importance_samples": found["effective_samples"].mean()})
    card["bounds"]["elbo_each"] = found["elbo"].tolist()
    return found


def without_network(card, x, train, stage):
    """The nats (N,) of images x under each baseline."""
    size = card["dimensions"]
    nats = {"uniform": np.full(len(x), baselines.uniform(size))}
    most = min(BASELINE_IMAGES, MEMORY_FRACTION * memory() // (8 * size))
    images = train[:: math.ceil(len(train) / most)]
    fitted = np.empty(images.shape, np.float32)
    for start in range(0, len(images), BLOCK):
        block = images[start : start + BLOCK]
        fitted[start : start + BLOCK] = scaled(block, Noise(card["seed"], "pixels", hashes(block)))
    progress = stage("full Gaussian")
    if baselines.fits_in_memory(size):
        nats["gaussian"] = baselines.FullGaussian(fitted, progress).log_density(x)
    else:
        card["notes"].append(f"the full Gaussian is left out: its covariance of {size} x {size} "
                             "values would take more than a quarter of the memory")
    for name, count in (("student", 1), ("mixture", COMPONENTS)):
        progress = stage(ROWS[name][0])
        nats[name] = baselines.StudentMixture(fitted, count, progress).log_density(x)
    return nats


def refitted(card, model, train, log_likelihood, progress):
    """E_q ln p(x|z) (N,) with the one sigma that suits decoder and q best, from that with the old.

    E_q ln p(x|z) = -D mse / (2 sigma^2) - (D/2) ln(2 pi sigma^2) gives mse, and with it any other
    sigma's. The best sigma is the root of mse on training images.
    """
    size = card["dimensions"]
    old = float(card["sigma"])
    names = list(hashes(train))
    x = model.device(scaled(train, Noise(card["seed"], "pixels", names)))
    mean, var = model.posterior(x)
    eps = Noise(card["seed"], "refit", names).normal((2, *mean.shape), 1)

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
    noise = Noise(card["seed"], "codes", names)
    lower, upper, error = estimates.aggregate_kl(mean, var, noise)
    figures = {"aggregate_KL_lower": lower, "aggregate_KL_upper": upper,
               "aggregate_KL_upper_standard_error": error}
    card["latents"] = {"kl": kl, "active": active.tolist(), **section(card, {}, figures)}
    if not active.all():
        part = " in part" if active.any() else ""
        card["notes"].append(
            f"warning: the posterior has collapsed{part}: q(z|x) ignores the image in "
            f"{np.count_nonzero(~active)} of {len(active)} latents")


def without_label(card, model, of_train, found, names, stage):
    """What is left of it where the model is not told an image's label: ln p(x), and whether the likeliest is right."""
    frequency = np.bincount(of_train.labels) / len(of_train.labels)
    joint = labels.log_joint(model, found["x"], found["mean"], found["var"], names, frequency, card["seed"],
                             stage("IWAE with each label"))
    truth = model.labels[: len(names)]
    given = joint[truth, np.arange(len(truth))] - np.log(frequency[truth])
    right = joint.argmax(0) == truth
    card["labels"] = section(card, {"iwae_given": given, "iwae_summed": logsumexp(joint, 0)}, {
        "accuracy": right.mean(), "accuracy_standard_error": estimates.standard_error(right),
        "accuracy_of_the_most_frequent_label": (truth == frequency.argmax()).mean()})
    card["notes"].append("the model is given each image's label: but for the label summed out, its rows are of "
                         "ln p(x|y), and the densities without a network of ln p(x)")


def annealed(card, model, found, names, stage):
    """AIS on the first few test images, what ln p(x) - ELBO is made of, and the best baseline."""
    few = slice(card["ais_images"])
    x, mean, var, elbo = (found[name][few] for name in ("x", "mean", "var", "elbo"))
    names = names[few]
    seed = card["seed"]
    prior = np.zeros_like(mean), np.ones_like(var)
    naive = estimates.importance(model, x, *prior, NAIVE, Noise(seed, "naive", names),
                                 stage("naive Monte Carlo"))
    q, ais = score.annealed(model, x, mean, var, Noise(seed, "AIS", names), card, stage)
    _, fitted = score.elbo(model, x, *q, names, seed, stage("ELBO of the fitted q"))
    log_p = log_mean_exp(ais["log_w"])
    best = max(found["baselines"], key=lambda name: found["baselines"][name].mean())
    baseline = found["baselines"][best][few]
    nats = {best: baseline, "naive": log_mean_exp(naive), "elbo": elbo,
            "iwae": found["iwae"][few], "elbo_fitted": fitted, "ais": log_p}
    card["annealed"] = section(card, nats, {
        "AIS_less_best_baseline": (log_p - baseline).mean(),
        "AIS_less_best_baseline_standard_error": estimates.standard_error(log_p - baseline),
        "gap": (log_p - elbo).mean(), "approximation_gap": (log_p - fitted).mean(),
        "amortization_gap": (fitted - elbo).mean(),
        "effective_naive_samples": effective_samples(naive).mean(), **mixing(ais)})
    card["annealed"] |= {"elbo_each": elbo.tolist(), "ais_each": log_p.tolist()}


def simulated(card, model, stage):
    """AIS from both ends on images drawn from the model: how wrong AIS is with these settings."""
    seed = card["seed"]
    names = numbered(card["annealed"]["rows"]["ais"]["images"])
    z = Noise(seed, "simulated codes", names).normal((len(names), model.vae.latent))
    x = model.simulate(z, Noise(seed, "simulated pixels", names))
    noise = Noise(seed, "simulated AIS", names)
    _, ais = score.annealed(model, x, *model.posterior(x), noise, card, stage, z)
    lower = log_mean_exp(ais["log_w"])
    upper = -log_mean_exp(ais["reverse_log_w"])
    card["simulated"] = section(card, {"ais": lower, "reverse_ais": upper}, {
        "BDMC_gap": (upper - lower).mean(),
        "BDMC_gap_standard_error": estimates.standard_error(upper - lower),
        "largest_BDMC_gap": (upper - lower).max(), **mixing(ais)})


def mixing(ais):
    """How many of the chains carry the estimate, and how many transitions were accepted."""
    return {"effective_AIS_chains": effective_samples(ais["log_w"]).mean(),
            "AIS_acceptance": ais["acceptance"].mean()}
