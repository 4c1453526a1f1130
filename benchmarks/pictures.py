"""The README's pictures, docs/samples.png and docs/reconstructions.png, from a finished run of `python run.py`.

    python benchmarks/pictures.py RUN

draws training images beside samples, and test images above their reconstructions, and writes between the README's first
markers how long that run took on this machine and where it ended.
"""

import sys
from pathlib import Path

import machine
import numpy as np
from readme import write_between

from minivae.images import data
from minivae.images.given import test_images
from minivae.ops import numpy_ops
from minivae.training import checkpoint, figures
from minivae.training.runs import Run
from minivae.vae import VAE

ROOT = Path(__file__).resolve().parent.parent
ROWS, COLUMNS = 6, 8  # of each half of samples.png
PAIRS = 20


def draw_beside(path, left, right, columns):
    """Two sets of as many images (N, H, W, C) in [-1, 1], a white column between them."""
    left, right = (x.reshape(-1, columns, *x.shape[1:]) for x in (left, right))
    rows = np.concatenate([left, np.ones_like(left[:, :1]), right], axis=1)
    figures.save_grid(path, rows.reshape(-1, *left.shape[2:]), 2 * columns + 1)


def outcome(run):
    """A paragraph about a run that was trained on this machine without a stop."""
    last = run.metrics()[-1]
    about = machine.describe()
    return (f"The first command made the pictures above in {last['seconds'] / 60:.0f} minutes ({about['processor']}, "
            f"{about['cores']} cores, {about['vectors']}). It prints the losses as it goes, draws its first pictures "
            f"after 100 steps, and ended its {last['step']:,.0f} steps at {last['test_loss']:.1f} nats per test image.")


def main(folder, docs=ROOT / "docs"):
    run = Run.open(folder)
    config, dataset = run.config, data.load(run.config.data, ROOT / "data")
    vae = VAE(config.shape, config.latent, numpy_ops, kl=config.kl, sigma=config.sigma)
    checkpoint.load_model(run / "checkpoint.h5", vae, run.config)
    count = ROWS * COLUMNS
    rows = np.random.RandomState(0).permutation(len(dataset.train.images))[:count]
    samples = figures.decode(vae, np.random.RandomState(0).randn(count, vae.latent))
    draw_beside(docs / "samples.png", dataset.train.images[rows] / 127.5 - 1, samples, COLUMNS)
    write_between("first", outcome(run))
    figures.draw_reconstructions(docs / "reconstructions.png", vae, test_images(dataset).images, PAIRS)


if __name__ == "__main__":
    main(*sys.argv[1:])
