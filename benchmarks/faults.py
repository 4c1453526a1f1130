"""Which kind of check sees the faults of tests/test_faults.py, and what a trained model's pictures
show of each.

    python benchmarks/faults.py [STEPS]

plants each fault, runs every check on it, trains a small model with it for STEPS (800) steps on
house numbers of 16 x 16 grey pixels, and writes the table between the markers of docs/faults.md and
the pictures to docs/faults.png.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from readme import table, write_between
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from test_faults import COLUMNS, FAULTS, PAGE, planted, row  # noqa: E402

from minivae.images import housenumbers  # noqa: E402
from minivae.ops import HALF_RANGE  # noqa: E402
from minivae.training.settings import Config  # noqa: E402
from minivae.training.trainer import Trainer  # noqa: E402
from minivae.vae import Widths  # noqa: E402

SHOWN = 6  # reconstructions, and as many samples, of each fault
TEST = 100  # images to reconstruct, and samples to draw
SEEDS = 4  # of the right model: what differs by no more than they do is not seen
FACTOR = 1.25


def images():
    """(N, 16, 16, 1) uint8."""
    made, _ = housenumbers.make("train", count=1000)
    return made.reshape(-1, 16, 2, 16, 2, 3).mean((2, 4, 5)).round().astype(np.uint8)[..., None]


def picture(plant, data, steps, seed=0):
    """(error, distance, thumbnails): the mean squared error of reconstructions of test images,
    the mean squared distance from samples to their nearest training images, and the first of
    both; None if training fails.
    """
    config = Config("housenumbers", steps, 32, 8, 3e-3, seed, "sample", 100, 1, 1,
                    data.shape[1:], "", "", 0.2)
    with planted(plant) as ops:
        trainer = Trainer(config, data[TEST:], ops, widths=Widths((8, 16, 32), 64, (64, 32, 16)))
        try:
            for _ in range(steps):
                trainer.step()
        except FloatingPointError:
            return None
        x = (data / HALF_RANGE - 1).astype(np.float32)
        reconstructions = trainer.vae.decode(trainer.vae.encode(x[:TEST]))
        z = np.random.RandomState(0).randn(TEST, config.latent).astype(np.float32)
        samples = trainer.vae.decode(z)
    pairs = np.mean(
        (samples.reshape(TEST, 1, -1) - x[TEST:].reshape(1, len(x) - TEST, -1)) ** 2, -1
    )
    thumbnails = np.concatenate([reconstructions[:SHOWN], samples[:SHOWN]])
    return np.mean((reconstructions - x[:TEST]) ** 2), pairs.min(1).mean(), thumbnails


def differs(found, right):
    """Whether a picture's numbers lie outside what the right model's seeds give, by a factor."""
    if found is None:
        return True
    numbers = np.array([r[:2] for r in right])
    return bool(
        ((found[:2] > FACTOR * numbers.max(0)) | (found[:2] < numbers.min(0) / FACTOR)).any()
    )


def draw(path, strips):
    """strips {name: thumbnails}: one line each, reconstructions on the left, samples on the
    right.
    """
    figure, axes = plt.subplots(len(strips), figsize=(9, 0.36 * len(strips)), dpi=80)
    for axis, (name, thumbnails) in zip(axes, strips.items(), strict=True):
        if thumbnails is None:
            thumbnails = np.full((2 * SHOWN, 16, 16, 1), np.nan)
        padded = np.pad(thumbnails[..., 0], ((0, 0), (1, 1), (1, 1)), constant_values=1)
        halves = [np.concatenate(list(half), 1) for half in np.split(padded, 2)]
        axis.imshow(
            np.concatenate([halves[0], np.ones((18, 10)), halves[1]], 1),
            "gray",
            vmin=-1,
            vmax=1,
            interpolation="nearest",
        )
        axis.set_axis_off()
        axis.text(-4, 9, name, ha="right", va="center", fontsize=8)
    axes[0].set_title("reconstructions, samples", fontsize=8)
    figure.subplots_adjust(left=0.42, right=0.99, top=0.97, bottom=0.005, hspace=0.08)
    figure.savefig(path)
    plt.close(figure)
    Image.open(path).convert("L").quantize(32).save(path, optimize=True)  # a fifth of the bytes


def main(steps=800):
    data = images()
    right = [picture(lambda ops, patch: None, data, steps, seed) for seed in range(SEEDS)]
    rows = []
    strips = {
        "test images": (data[: 2 * SHOWN] / HALF_RANGE - 1),
        "no fault": right[0][2],
        "no fault, seed 1": right[1][2],
    }
    for fault in tqdm(FAULTS, disable=None):
        found = picture(fault.plant, data, steps)
        *cells, first = row(fault)
        rows.append([*cells, "yes" if differs(found, right) else "", first])
        strips[fault.name] = found and found[2]
        print(fault.name, *(found[:2] if found else ["not finite"]), sep=", ")
    for error, distance, _ in right:
        print(f"no fault: {error:.4f} {distance:.4f}")
    text = table(["fault", "found in", *COLUMNS, "picture", "the first check that sees it"], rows)
    passing = sum(not cells[2] for cells in rows)
    summary = (
        f"{passing} of the {len(rows)} pass the gradient check. "
        f"Pictures are of models after {steps:,} steps."
    )
    write_between("faults", f"{text}\n\n{summary}", PAGE)
    draw(PAGE.with_suffix(".png"), strips)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
