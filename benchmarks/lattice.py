"""The lattice of dots in generated images: how strong it is, where it is, and what it is made of (docs/lattice.md).

    python benchmarks/lattice.py RUN [RUN ...]

prints two tables of the runs, and writes them between the markers of docs/lattice.md.
"""

import sys
from pathlib import Path

import numpy as np
from readme import table, write_between

from minivae.images import data
from minivae.ops import numpy_ops
from minivae.training import checkpoint, figures
from minivae.training.runs import Run
from minivae.vae import VAE

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = 100
BATCH = 256  # training images whose activations are looked at
NOISE = 0.004  # standard deviation


def quadrants(x):
    """Top left, top right, bottom left and bottom right of x (N, H, W, ...)."""
    height, width = x.shape[1] // 2, x.shape[2] // 2
    return [x[:, rows, columns] for rows in (slice(height), slice(height, None))
            for columns in (slice(width), slice(width, None))]


def checkerboard(images):
    """The mean of (x[i, j] - x[i+1, j] - x[i, j+1] + x[i+1, j+1])^2 in each quadrant, times 10^4, for x in [0, 1].

    images (N, H, W, C) in [-1, 1].
    """
    found = []
    for x in quadrants((images.astype(np.float64) + 1) / 2):
        difference = x[:, :-1, :-1] - x[:, 1:, :-1] - x[:, :-1, 1:] + x[:, 1:, 1:]
        found.append(1e4 * np.mean(difference**2))
    return found


def concentration(vae, images):
    """Where the generator's last batch norm finds the variance that it scales to 1, on one batch of images.

    Returns the share of each quadrant, and that of the tenth of the images that have most.
    """
    noise = np.random.RandomState(0).randn(len(images), vae.latent).astype(vae.dtype)
    statistics = vae.params.moving_statistics.copy()
    vae.forward(figures.to_model(vae, images), noise)
    vae.params.moving_statistics[...] = statistics  # of the batch, they moved
    before = vae.generator.tconv2.norm.x
    squares = ((before - before.mean((0, 1, 2))) ** 2 / before.var((0, 1, 2))).mean(3)  # (N, 16, 16)
    each = np.sort(squares.sum((1, 2)))
    return [x.sum() / squares.sum() for x in quadrants(squares)] + [each[-len(each) // 10 :].sum() / each.sum()]


def shaken(vae, z):
    """The checkerboard measure of x_hat with noise on the weights of the generator's last layer."""
    weights = vae.generator.tconv3.w.value
    before = weights.copy()
    weights += NOISE * np.random.RandomState(0).randn(*weights.shape)
    found = checkerboard(figures.decode(vae, z))
    weights[...] = before
    return found


def untrained(config):
    return VAE(config.shape, config.latent, numpy_ops, seed=config.seed, kl=config.kl, sigma=config.sigma)


def measure(folder):
    """The run's rows of both tables, as strings."""
    run = Run.open(folder)
    dataset, last, config = data.load(run.config.data, ROOT / "data"), run.metrics()[-1], run.config
    rows = np.random.RandomState(0).permutation(len(dataset.train.images))[:BATCH]
    images = dataset.train.images[rows]
    vae = untrained(config)
    at_first = concentration(vae, images)
    checkpoint.load_model(run / "checkpoint.h5", vae, run.config)
    z = np.random.RandomState(0).randn(200, vae.latent)[:SAMPLES]  # the first half of samples.png
    name = [dataset.name, str(config.seed), f"{last['step']:,.0f}", f"{config.lr:g} to {config.lr_end:g}"]
    loss = f"{last['test_loss']:.1f}" if "test_loss" in last else ""
    strengths = [f"{value:.1f}" for value in checkerboard(figures.decode(vae, z))]
    shares = [f"{100 * share:.0f}" for share in (at_first[3], *concentration(vae, images)[3:])]
    return [*name, loss, *strengths], [*name, *shares, *(f"{value:.1f}" for value in shaken(vae, z))]


def main(folders):
    strengths, causes = zip(*[measure(folder) for folder in folders], strict=True)
    corners = ["top left", "top right", "bottom left", "bottom right"]
    name = ["data", "seed", "steps", "learning rate"]
    for marker, header, rows in (
        ("lattice", [*name, "test loss", *corners], strengths),
        ("cause", [*name, "% at first", "% at the end", "% in a tenth", *corners], causes),
    ):
        text = table(header, rows)
        print(text, end="\n\n")
        write_between(marker, text, ROOT / "docs" / "lattice.md")


if __name__ == "__main__":
    main(sys.argv[1:])
