"""What a model of --sigma spectrum believes: the scales of its noise, what z does to them, and draws of p(x|z).

    python examples/spectrum.py RUN

draws docs/spectrum.png from a trained run, in some seconds.
"""

import sys

import numpy as np
from matplotlib.figure import Figure
from pages import DOCS

import minivae
from minivae.ops import HALF_RANGE

COLUMNS = 8  # codes whose x_hat and draw are shown
AXES = {3: ("brightness", "red less blue", "green against both"), 1: ("brightness",)}


def by_radius(values, shape):
    """Means of values (H, W, C) over rings of one unit, from the lowest frequency to the highest of a side: (R, C)."""
    p, q = np.mgrid[: shape[0], : shape[1]]
    ring = np.hypot(p, q).round()
    return np.array([values[ring == r].mean(0) for r in range(min(shape[:2]))])


def draw_shared(axis, vae):
    scales = np.exp(vae.ops.to_host(vae.likelihood.spectrum.value)).reshape(vae.shape) * HALF_RANGE
    for line, name in zip(by_radius(scales, vae.shape).T, AXES[vae.shape[2]], strict=True):
        axis.semilogy(line, label=name)
    axis.axhline(12**-0.5, color="grey", lw=0.8)
    axis.text(0, 1.1 * 12**-0.5, "dequantization", color="grey", fontsize=8)
    axis.set(title="e^b, shared by all images", xlabel="half periods of a side", ylabel="grey levels")
    axis.legend(fontsize=8)


def draw_moved(axis, vae):
    """log_scale of brightness along each latent, two standard deviations to both sides."""
    codes = np.concatenate([-2 * np.eye(vae.latent), 2 * np.eye(vae.latent)])
    log_scale = vae.ops.to_host(vae.likelihood.log_scale(vae.ops.xp.asarray(codes, vae.dtype)))
    low, high = log_scale.reshape(2, vae.latent, *vae.shape)
    change = [by_radius(latent, vae.shape)[:, 0] for latent in high - low]
    strongest = sorted(change, key=lambda line: -np.abs(line).mean())
    for line in strongest[:5]:
        axis.plot(line if line[0] > 0 else -line)
    axis.axhline(0, color="grey", lw=0.8)
    axis.set(title="log_scale of brightness from z_i = -2 to 2,\nthe five strongest i", xlabel="half periods of a side")


def draw_images(axis, model):
    rows = [np.concatenate(list(model.sample(COLUMNS, noise=noise)), axis=1) for noise in (False, True)]
    axis.imshow(np.concatenate(rows).squeeze(), cmap="gray")
    axis.set(title="x_hat, and below it a draw of p(x|z)", xticks=[], yticks=[])


def main(run):
    model = minivae.load(run)
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 2.2))
    draw_shared(figure.add_subplot(grid[0, 0]), model.vae)
    draw_moved(figure.add_subplot(grid[0, 1]), model.vae)
    draw_images(figure.add_subplot(grid[1, :]), model)
    figure.savefig(DOCS / "spectrum.png", dpi=110)


if __name__ == "__main__":
    main(sys.argv[1])
