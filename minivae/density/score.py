"""What ln p(x) is of each of some images: the bounds, and annealed importance sampling."""

from minivae.density import estimates
from minivae.density.estimates import Noise, effective_samples, log_mean_exp, scaled

DRAWS = 10  # of z for each image's ELBO


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
