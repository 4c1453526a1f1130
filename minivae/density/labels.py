"""What a model that is given labels says of images without them: ln p(x), and each label's share of it."""

import numpy as np

from minivae.density import estimates
from minivae.density.estimates import Model, log_mean_exp
from minivae.noise import Noise

DRAWS = 10  # of z for each image and label


def log_joint(model, x, mean, var, names, frequency, seed, progress):
    """ln p(x, y) (Y, N), y every label: ln p(y) + an importance-weighted bound on ln p(x|y), from N(mean, var).

    The log of its sum over y is a lower bound on ln p(x) on average. frequency (Y,) is p(y). All labels have the same
    draws of z, so that little of their differences is noise.
    """
    found = np.empty((len(frequency), len(x)))
    for label in progress(range(len(frequency))):
        given = Model(model.vae, np.full(len(x), label), model.ranks)
        noise = Noise(seed, "labels", names)
        found[label] = log_mean_exp(estimates.importance(given, x, mean, var, DRAWS, noise))
    return found + np.log(frequency)[:, None]
