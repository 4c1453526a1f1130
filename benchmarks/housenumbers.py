"""The housenumbers images beside SVHN's: a page of each, and the statistics that make the look.

    python benchmarks/housenumbers.py SVHN PAGE.png

SVHN is a folder with train_32x32.mat; PAGE.png gets 100 of its images on the left and 100 of ours on the right. It
prints median (5 %, 95 %) over the images of each side.
"""

import argparse
from pathlib import Path

import numpy as np
from readme import table

from minivae.errors import UserError
from minivae.images import data, housenumbers
from minivae.ops import HALF_RANGE
from minivae.training import figures

COUNT = 4000
STATISTICS = {  # of x (N, 32, 32, 3) in [0, 1] and its grey values g
    "brightness: mean": lambda x, g: g.mean((1, 2)),
    "contrast: standard deviation": lambda x, g: g.std((1, 2)),
    "contrast of the middle 16x16": lambda x, g: g[:, 8:24, 8:24].std((1, 2)),
    "sharpness: mean step to the right / contrast": lambda x, g: steps(g, 2) / g.std((1, 2)),
    "sharpness: mean step down / contrast": lambda x, g: steps(g, 1) / g.std((1, 2)),
    "noise and detail: mean absolute Laplacian": lambda x, g: laplacian(g),
    "saturation: largest less smallest channel": lambda x, g: (x.max(3) - x.min(3)).mean((1, 2)),
    "warmth: mean of (red - blue) / 2": lambda x, g: (x[..., 0] - x[..., 2]).mean((1, 2)) / 2,
    "unevenness of the red - grey": lambda x, g: (x[..., 0] - g).std((1, 2)),
}


def steps(g, axis):
    return np.abs(np.diff(g, axis=axis)).mean((1, 2))


def laplacian(g):
    middle = g[:, 1:-1, 1:-1]
    return np.abs(4 * middle - g[:, :-2, 1:-1] - g[:, 2:, 1:-1] - g[:, 1:-1, :-2] - g[:, 1:-1, 2:]).mean((1, 2))


def quantiles(of, images):
    x = images / 255
    low, median, high = np.quantile(of(x, x.mean(3)), [0.05, 0.5, 0.95])
    return f"{median:.3f} ({low:.3f}, {high:.3f})"


def main(svhn, page):
    real = data.load(svhn.absolute(), None).train.images  # absolute: a folder svhn is not a download
    real = real[np.random.RandomState(0).permutation(len(real))[:COUNT]]
    ours, _ = housenumbers.make("train", count=len(real))
    print(table(["median (5 %, 95 %)", "SVHN", "housenumbers"],
                [[name, quantiles(of, real), quantiles(of, ours)] for name, of in STATISTICS.items()]))
    rows = [side[i : i + 10] for i in range(0, 100, 10) for side in (real, ours)]
    figures.save_grid(page, np.concatenate(rows) / HALF_RANGE - 1, 20)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("svhn", metavar="SVHN", type=Path, help="folder with train_32x32.mat")
    parser.add_argument("page", metavar="PAGE.png", type=Path, help="the picture to write")
    args = parser.parse_args()
    try:
        main(args.svhn, args.page)
    except UserError as e:
        parser.error(str(e))
