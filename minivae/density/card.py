"""The density card of a run: every estimate of its test images, printed, in density.json and density.png.

A row says what it is: exact, a lower bound, a lower bound on average (its average over the noise is below ln p(x)), or
an upper one. Nats are those of the density of x in [-1, 1]^D; bits per dimension those of the pixels in [0, 256]^D.
"""

import json
import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from minivae.density import baselines, estimates
from minivae.density.estimates import Model, Noise, log_mean_exp, scaled
from minivae.files import refuse_unwritable, replacing, write_text
from minivae.images.data import refuse_overlap, test_subset
from minivae.training.evaluation import Evaluation

AVERAGE = "lower bound on average"
DRAWS = 10  # of z for each image's ELBO
NAIVE = 1000  # of z for naive Monte Carlo
GAUSSIAN_IMAGES = 20000  # at most, for the Gaussian baseline
CPU = {"images": 1000, "importance": 100, "ais_images": 16, "ais_chains": 4, "ais_steps": 50}  # minutes
GPU = {"images": 1000, "importance": 1000, "ais_images": 64, "ais_chains": 16, "ais_steps": 1000}


def evaluate(run, vae, dataset, step, images, importance, ais_images, ais_chains, ais_steps, seed):
    """Print the card of a model after `step` steps, write it into the run directory and return it as a dictionary.

    images: of the test split as test_subset orders it; ais_images: how many of those AIS sees. UserError if a
    test image occurs in the training set, or the files cannot be written.
    """
    refuse_unwritable(run.folder)
    refuse_overlap(dataset)
    model, train = Model(vae, vae.ops.IMAGES_AT_ONCE), dataset.train.images
    subset = test_subset(dataset.test.images)
    test = subset[:images]
    size = math.prod(test.shape[1:])
    card = {
        "run": str(run.folder), "update": step, "sigma": vae.likelihood.sigma,
        "sigma_value": sigma_value(vae), "seed": seed,
        "train": {"images": len(dataset.train.images), "sha256": dataset.train.sha256},
        "test": {"images": len(dataset.test.images), "sha256": dataset.test.sha256},
        "dimensions": size, "importance": importance, "ais_chains": ais_chains, "ais_steps": ais_steps,
    }
    rec, kl = (float(part) for part in Evaluation(vae, subset, run.config.seed).losses())
    card["reference_protocol"] = {"loss": rec + kl, "rec": rec, "kl": kl, "images": len(subset)}
    mean, var = bounds(card, model, test, train, importance, seed)
    if card["sigma"] not in ("optimal", "learned", "pixel"):
        refit_sigma(card, model, train[:images], seed)
    latents(card, mean, var, seed)
    few = slice(min(ais_images, len(test)))
    x = model.device(scaled(test[few]))
    annealed(card, model, x, mean[few], var[few], importance, ais_chains, ais_steps, seed)
    simulated(card, model, len(x), ais_chains, ais_steps, seed)
    print_card(card)
    draw(run / "density.png", card)
    write_text(run / "density.json", json.dumps(card, indent=2) + "\n")
    return card


def sigma_value(vae):
    """The number that p(x|z)'s sigma is in test mode; None for "pixel", which has one for each value of each image."""
    if vae.likelihood.sigma != "pixel":
        return math.exp(float(vae.likelihood.log_sigma.value[0]))


def estimate(values, size, kind):
    """A row of the card from a value for each image, in nats; its standard error needs two images."""
    n, mean = len(values), float(np.mean(values))
    return {"nats_per_image": mean, "standard_error": float(np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else None,
            "bits_per_dim": float(estimates.bits_per_dim(mean, size)), "images": n, "kind": kind}


def bounds(card, model, test, train, importance, seed):
    """Baselines, ELBO and importance-weighted bound on all test images; mean and var of q(z|x)."""
    size, noise, x = card["dimensions"], Noise(seed, 0), model.device(scaled(test))
    eps = noise.normal((DRAWS, len(test), model.vae.latent))
    mean, var = model.posterior(x)
    elbo = estimates.elbo(model, x, mean, var, eps)[2].mean(0)
    log_w = estimates.importance(model, x, mean, var, importance, noise, "importance weights")
    dequantized = scaled(test, noise)
    y = model.device(dequantized)
    spread = estimates.elbo(model, y, *model.posterior(y), eps, "ELBO, dequantized")[2].mean(0)
    gaussian = baselines.FullGaussian(train[:: -(-len(train) // GAUSSIAN_IMAGES)])
    card["bounds"] = {
        "uniform density": estimate(np.full(len(test), baselines.uniform(size)), size, "exact"),
        "full Gaussian of the training pixels": estimate(gaussian.log_density(scaled(test)), size, "exact"),
        f"ELBO, {DRAWS} draws": estimate(elbo, size, "lower bound"),
        f"IWAE-{importance}": estimate(log_mean_exp(log_w), size, AVERAGE),
        "full Gaussian, dequantized pixels": estimate(gaussian.log_density(dequantized), size, "exact"),
        "ELBO, dequantized pixels": estimate(spread, size, "lower bound"),
    }
    kl = float(estimates.kl_per_latent(mean, var).sum(1).mean())
    card["elbo_parts"] = {"expected ln p(x|z)": float(elbo.mean()) + kl, "kl": kl}
    card["importance_ess"] = float(estimates.effective_samples(log_w).mean())
    return mean, var


def refit_sigma(card, model, train, seed):
    """The one sigma that suits a fixed-sigma model's decoder and q best, found on training images, its gain on test's.

    E_q ln p(x|z) = -D mse / (2 sigma^2) - (D/2) ln(2 pi sigma^2): mse, and with it any other sigma's, follow from one.
    """
    size, old = card["dimensions"], float(card["sigma"])
    x = model.device(scaled(train))
    mean, var = model.posterior(x)
    eps = Noise(seed, 1).normal((2, *mean.shape))

    def mse(likelihood):
        return -2 * old**2 * (likelihood / size + math.log(2 * math.pi * old**2) / 2)

    best = math.sqrt(mse(estimates.elbo(model, x, mean, var, eps, "refit of sigma")[0].mean()))
    likelihood = card["elbo_parts"]["expected ln p(x|z)"]
    refitted = -size * (mse(likelihood) / best**2 + math.log(2 * math.pi * best**2)) / 2
    elbo = refitted - card["elbo_parts"]["kl"]
    card["refitted_sigma"] = {"sigma": best, "elbo": elbo, "gain": refitted - likelihood,
                              "bits_per_dim": float(estimates.bits_per_dim(elbo, size))}


def latents(card, mean, var, seed):
    active = estimates.active_units(mean)
    lower, upper = estimates.aggregate_kl(mean, var, Noise(seed, 2))
    card["latents"] = {"kl": estimates.kl_per_latent(mean, var).mean(0).tolist(), "active": active.tolist(),
                       "aggregate_kl_lower": lower, "aggregate_kl_upper": upper}
    idle = int((~active).sum())
    if idle:
        what = "the posterior has collapsed" if idle == len(active) else "the posterior has collapsed in part"
        card["warning"] = f"{what}: q(z|x) ignores the image in {idle} of {len(active)} latents"


def annealed(card, model, x, mean, var, importance, chains, steps, seed):
    """All lower bounds and AIS on the same few test images, and what ln p(x) - ELBO is made of."""
    size, noise = card["dimensions"], Noise(seed, 3)
    naive = estimates.importance(model, x, np.zeros_like(mean), np.ones_like(var), NAIVE, noise, "naive Monte Carlo")
    log_w = estimates.importance(model, x, mean, var, importance, noise, "importance weights")
    eps = noise.normal((DRAWS, *mean.shape))
    fitted = estimates.fit_posterior(model, x, mean, var, noise)
    found = estimates.anneal(model, x, *fitted, chains, steps, noise)
    elbo = estimates.elbo(model, x, mean, var, eps)[2].mean(0)
    best = estimates.elbo(model, x, *fitted, eps, "ELBO, fitted q")[2].mean(0)
    log_p = log_mean_exp(found["log_w"])
    card["annealed"] = {
        f"naive Monte Carlo, {NAIVE} draws": estimate(log_mean_exp(naive), size, AVERAGE),
        f"ELBO, {DRAWS} draws": estimate(elbo, size, "lower bound"),
        f"IWAE-{importance}": estimate(log_mean_exp(log_w), size, AVERAGE),
        "ELBO of a q fitted to each image": estimate(best, size, "lower bound"),
        "log-likelihood by AIS": estimate(log_p, size, AVERAGE),
    }
    card["gap"] = {"total": float((log_p - elbo).mean()), "approximation": float((log_p - best).mean()),
                   "amortization": float((best - elbo).mean())}
    card["ais"] = {"acceptance": float(found["acceptance"].mean()), "elbo_each": elbo.tolist(), "each": log_p.tolist(),
                   "ess": float(estimates.effective_samples(found["log_w"]).mean()),
                   "naive_ess": float(estimates.effective_samples(naive).mean())}


def simulated(card, model, count, chains, steps, seed):
    """AIS from both ends on images drawn from the model: how wrong AIS with these settings is, measured."""
    noise = Noise(seed, 4)
    z = noise.normal((count, model.vae.latent))
    x = model.simulate(z, noise)
    fitted = estimates.fit_posterior(model, x, *model.posterior(x), noise)
    found = estimates.anneal(model, x, *fitted, chains, steps, noise, z)
    lower, upper = log_mean_exp(found["log_w"]), -log_mean_exp(found["reverse_log_w"])
    card["simulated"] = {
        "lower": estimate(lower, card["dimensions"], AVERAGE),
        "upper": estimate(upper, card["dimensions"], "upper bound on average"),
        "gap": float((upper - lower).mean()), "largest_gap": float((upper - lower).max()),
        "acceptance": float(found["acceptance"].mean()),
        "ess": float(estimates.effective_samples(found["log_w"]).mean()),
    }


def print_card(card):
    c, constant = card, card["dimensions"] / 2 * math.log(2 * math.pi)
    print(f"\nDensity card of {c['run']}: update {c['update']}, sigma {named_sigma(c)}, seed {c['seed']}")
    for split in ("train", "test"):
        print(f"{split:<6}{c[split]['images']} images, sha256 {c[split]['sha256']}")
    print("no test image occurs in the training set; batch norm in test mode throughout")
    print("\nln p(x) of images x in [-1, 1], in nats per image (more is better), +- its standard error over images;")
    print("the same in bits per dimension of their pixels 0..255 (less is better)\n")
    print(f"{c['bounds']['uniform density']['images']} test images{'':<30}{'nats/image':>12}{'+-':>8}{'bits/dim':>10}")
    print_rows(c["bounds"])
    parts, protocol = c["elbo_parts"], c["reference_protocol"]
    print(f"  ELBO = E ln p(x|z) - KL(q||p) = {parts['expected ln p(x|z)']:.2f} - {parts['kl']:.2f}")
    print(f"  effective sample size of the importance weights: {c['importance_ess']:.1f} of {c['importance']}")
    print(f"  the reference's protocol ({protocol['images']} images, one z each, no (D/2) ln 2 pi = {constant:.2f}):")
    print(f"    loss {protocol['loss']:.2f} = rec {protocol['rec']:.2f} + kl {protocol['kl']:.2f}")
    if "refitted_sigma" in c:
        refit = c["refitted_sigma"]
        print(f"  best single sigma, refitted on training images: {refit['sigma']:.4f}; ELBO {refit['elbo']:.2f}, "
              f"{refit['bits_per_dim']:.3f} bits/dim, a gain of {refit['gain']:.2f} nats")
    ais, gap, ends, latents = c["ais"], c["gap"], c["simulated"], c["latents"]
    print(f"\nthe first {len(ais['each'])} of them")
    print_rows(c["annealed"])
    print(f"  AIS: {c['ais_chains']} chains of {c['ais_steps']} temperatures, acceptance {ais['acceptance']:.2f}; "
          f"effective sample size {ais['ess']:.1f} of {c['ais_chains']}, naive Monte Carlo's {ais['naive_ess']:.1f} "
          f"of {NAIVE}")
    print(f"  log-likelihood - ELBO = {gap['total']:.2f} = approximation {gap['approximation']:z.2f} + amortization "
          f"{gap['amortization']:.2f}")
    print(f"\n{ends['lower']['images']} images simulated from the model: the error of AIS with these settings")
    print_rows({"log-likelihood by AIS": ends["lower"], "log-likelihood by reverse AIS": ends["upper"]})
    print(f"  gap {ends['gap']:z.2f} nats, of one image at most {ends['largest_gap']:.2f}; acceptance "
          f"{ends['acceptance']:.2f}, effective sample size {ends['ess']:.1f} of {c['ais_chains']}")
    print(f"\nlatents, {sum(latents['active'])} of {len(latents['active'])} active")
    print("  KL(q(z|x) || p(z)) in nats:", *(f"{kl:.2f}" for kl in latents["kl"]))
    print(f"  KL(q(z) || p(z)) in nats: between {latents['aggregate_kl_lower']:.2f} and "
          f"{latents['aggregate_kl_upper']:.2f}")
    if "warning" in c:
        print(f"warning: {c['warning']}")


def print_rows(rows):
    for name, row in rows.items():
        error = "-" if row["standard_error"] is None else f"{row['standard_error']:.2f}"
        print(f"  {name:<40}{row['nats_per_image']:12.2f}{error:>8}{row['bits_per_dim']:10.3f}  {row['kind']}")


def named_sigma(card):
    """"1", "learned (0.0832)", "pixel"."""
    name, value = card["sigma"], card["sigma_value"]
    if name == "pixel":
        return name
    return f"{name} ({value:.4f})" if name in ("learned", "optimal") else f"{float(name):g}"


def draw(path, card):
    """Bits per dimension of every row; what the ELBO lacks of ln p(x), image by image; KL of each latent."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    bars, gaps, latents = figure.subplots(1, 3, width_ratios=(1.8, 1, 1))
    name = Path(card["run"]).name
    figure.suptitle(f"Density card of {name}: update {card['update']}, sigma {named_sigma(card)}", fontsize=11)
    draw_bits(bars, card)
    ais, elbo = np.array(card["ais"]["each"]), np.array(card["ais"]["elbo_each"])
    gaps.plot(ais, ais - elbo, "o", ms=4)
    gaps.axhline(0, color="gray", lw=1)
    gaps.xaxis.set_major_locator(MaxNLocator(4))
    gaps.set_title(f"what the ELBO lacks, {len(ais)} test images", fontsize=10)
    gaps.set(xlabel="log-likelihood by AIS, nats", ylabel="log-likelihood by AIS - ELBO, nats")
    kl, active = card["latents"]["kl"], card["latents"]["active"]
    latents.bar(range(len(kl)), kl, color=["C0" if on else "C3" for on in active])
    latents.xaxis.set_major_locator(MaxNLocator(integer=True))
    latents.set_title("KL(q(z|x) || p(z)) of each latent", fontsize=10)
    latents.set(xlabel="latent" if all(active) else "latent (red: inactive)", ylabel="nats, mean over images")
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=130)


def draw_bits(axis, card):
    """One bar a row: those of all images, a gap, those of the few that AIS saw."""
    groups = list(card["bounds"].items()), list(card["annealed"].items())
    places = [i + (i >= len(groups[0])) for i in range(sum(map(len, groups)))]
    names, rows = zip(*groups[0], *groups[1], strict=True)
    bits = [row["bits_per_dim"] for row in rows]
    drawn = axis.barh(places, bits, color=["C7" if row["kind"] == "exact" else "C0" for row in rows])
    axis.bar_label(drawn, fmt="%.3f", padding=3, fontsize=8)
    axis.axvline(bits[0], color="gray", lw=1, ls="--")
    axis.set_yticks(places, names, fontsize=8)
    axis.set_ylim(places[-1] + 0.7, -1.2)
    for start, (_, row) in zip((places[0], places[-1] - len(groups[1]) + 1), (g[0] for g in groups), strict=True):
        axis.text(0, start - 0.55, f" {row['images']} test images", fontsize=8, style="italic", va="bottom")
    axis.set_xlim(min(0, *bits), max(bits) * 1.15)
    axis.set_title("bits per dimension (less is better)", fontsize=10)
    axis.set_xlabel("gray: exact; blue: a bound, the truth is at most that; dashed: uniform density", fontsize=8)
