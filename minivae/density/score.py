"""What ln p(x) is of each of some images: the bounds, and annealed importance sampling."""

import json
import math

import numpy as np

from minivae.density import estimates
from minivae.density.estimates import Model, effective_samples, log_mean_exp, scaled
from minivae.density.report import Stages
from minivae.errors import UserError
from minivae.images.data import hashes
from minivae.noise import Noise
from minivae.training import figures
from minivae.training.ranks import Alone

DRAWS = 10  # of z for each image's ELBO
BLOCK = 1000  # images at a time
SHOWN = 10  # of the least and of the most likely images
SETTINGS = ("importance", "ais_chains", "ais_steps", "seed")
LIMITS = """A density ranks images; it does not tell which are like the training images. Smooth images
are likelier than others under any such model: one of CIFAR finds SVHN likelier than CIFAR
(Nalisnick et al., arXiv 1810.09136). Compare an image with the run's test images only if it
is of their kind; docs/density.md says more."""


def bounds(model, images, names, settings, stage):
    """What is found of images (N, H, W, C) uint8, whose hashes are `names`: {name: array}.

    Their dequantized pixels, in [-1, 1], and as x on the device; mean and var of q(z|x) (N, Z); of
    each image (N,) log_likelihood (the mean of ln p(x|z)), kl, elbo, iwae and its effective
    samples. settings: seed, importance.
    """
    seed = settings["seed"]
    pixels = scaled(images, Noise(seed, "pixels", names))
    x = model.device(pixels)
    mean, var = model.posterior(x)
    found = {"pixels": pixels, "x": x, "mean": mean, "var": var}
    found["kl"] = estimates.kl_per_latent(mean, var).sum(1)
    found["log_likelihood"], found["elbo"] = elbo(model, x, mean, var, names, seed, stage("ELBO"))
    log_w = estimates.importance(model, x, mean, var, settings["importance"],
                                 Noise(seed, "IWAE", names), stage("IWAE"))
    return found | {"iwae": log_mean_exp(log_w), "effective_samples": effective_samples(log_w)}


def elbo(model, x, mean, var, names, seed, progress):
    """E ln p(x|z) and the ELBO (N,) of DRAWS draws from N(mean, var), the same for every N(mean, var)."""
    eps = Noise(seed, "ELBO", names).normal((DRAWS, *mean.shape), 1)
    return estimates.elbo(model, x, mean, var, eps, progress)


def annealed(model, x, mean, var, noise, settings, stage, exact=None):
    """AIS from a q that is fitted to each image, starting at N(mean, var): q and estimates.anneal's.

    settings: ais_chains, ais_steps. exact: draws of p(z|x), if there are any.
    """
    q = estimates.fit_posterior(model, x, mean, var, noise, stage("fit of q"))
    return q, estimates.anneal(model, x, *q, settings["ais_chains"], settings["ais_steps"], noise,
                               exact, stage)


def known_card(run, step):
    """The run's density card, {} if there is none of this step. UserError if it is damaged."""
    path = run / "density.json"
    if not path.exists():
        return {}
    try:
        card = json.loads(path.read_text())
        return card if card["step"] == step and "elbo_each" in card["bounds"] else {}
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise UserError(f"{path} cannot be read as a density card ({e}); delete it, or make it "
                        "again with evaluate") from e


def score(vae, images, labels, settings, ais, test_elbo, ranks=Alone()):
    """{column: (N,)}, with a row for each of images (N, H, W, C) uint8: see docs/density.md.

    labels (N,), for a VAE that is given them. settings: SETTINGS. ais: whether to anneal as well.
    test_elbo: of the run's test images, among which the ELBO has its rank; None if it is not known.
    ranks: the processes that share the work.
    """
    blocks = range(0, len(images), BLOCK)
    stage = Stages(len(blocks) * (5 if ais else 2))
    parts = []
    for start in blocks:
        rows = slice(start, start + BLOCK)
        model = Model(vae, None if labels is None else labels[rows], ranks)
        parts.append(_block(model, images[rows], settings, ais, stage))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    best = columns["ais" if ais else "iwae"]
    columns["bits_per_dim"] = estimates.bits_per_dim(best, math.prod(images.shape[1:]))
    if test_elbo is not None:
        columns["rank"] = 1 + (np.array(test_elbo) > columns["elbo"][:, None]).sum(1)
    return columns


def _block(model, images, settings, ais, stage):
    names = list(hashes(images))
    found = bounds(model, images, names, settings, stage)
    constant = images[0].size / 2 * math.log(2 * math.pi)  # which rec is without, here as elsewhere
    columns = {"elbo": found["elbo"], "rec": -found["log_likelihood"] - constant, "kl": found["kl"],
               "iwae": found["iwae"], "effective_samples": found["effective_samples"]}
    if ais:
        noise = Noise(settings["seed"], "AIS", names)
        _, chains = annealed(model, found["x"], found["mean"], found["var"], noise, settings, stage)
        columns["ais"] = log_mean_exp(chains["log_w"])
        columns["ais_95"] = columns["ais"] - math.log(20)
    return columns


def draw(path, vae, images, labels, columns):
    """The least likely images above their reconstructions, and below them the most likely ones."""
    order = columns["bits_per_dim"].argsort()[::-1]
    count = min(SHOWN, -(-len(order) // 2))
    rows = np.concatenate([order[:count], order[-count:]])
    figures.draw_reconstructions(path, vae, images[rows], 2 * count, count,
                                 None if labels is None else labels[rows])
