"""Pictures of a run: losses, samples, reconstructions, interpolations."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave

from minivae.files import replacing

GRID_COLUMNS = 20


def draw_all(run, trainer):
    draw_losses(run / "losses.png", run.metrics())
    draw_samples(run / "samples.png", trainer.vae)
    draw_reconstructions(run / "reconstructions.png", trainer.vae, trainer.test_images)


def draw_losses(path, metrics):
    """Loss and its parts over the updates, nats per image: training as lines, test as points."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    titles = {"loss": "loss = rec + kl", "rec": "reconstruction", "kl": "kl"}
    for axis, (part, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for split, style in (("train", "-"), ("test", "o")):
            rows = [row for row in metrics if f"{split}_{part}" in row]
            axis.plot([r["step"] for r in rows], [r[f"{split}_{part}"] for r in rows], style, label=split, ms=4)
        axis.set(title=title, xlabel="update")
        shown = [r[f"{split}_{part}"] for r in metrics for split in ("train", "test") if f"{split}_{part}" in r]
        if shown:  # a run may be stopped before its first row; the first updates' losses would flatten all others
            low, high = np.quantile(shown, [0, 0.9])
            axis.set_ylim(low - 0.1 * abs(low), high + 0.1 * abs(high))
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("nats per image")
    figure.axes[0].legend()
    with replacing(path) as beside:
        figure.savefig(beside, dpi=130, format="png")


def draw_samples(path, vae, count=200, seed=0):
    """x_hat of `count` draws from the prior, RandomState(seed).randn as the reference draws them, in rows of 20."""
    z = np.random.RandomState(seed).randn(count, vae.latent)
    save_grid(path, decode(vae, z), GRID_COLUMNS)


def draw_reconstructions(path, vae, images, count=50):
    """Test images above their reconstructions, z the mean of q(z|x)."""
    x = to_model(vae, images[:count])
    pairs = np.stack([vae.ops.to_host(x), decode(vae, vae.ops.to_host(vae.encode(x)))])
    columns = 10
    rows = [pairs[:, i : i + columns] for i in range(0, pairs.shape[1], columns)]
    rows[-1] = np.pad(rows[-1], ((0, 0), (0, columns - rows[-1].shape[1]), *3 * [(0, 0)]), constant_values=1)
    save_grid(path, np.concatenate([pair for row in rows for pair in row]), columns)


def draw_interpolation(path, vae, images, count=10, columns=12):
    """One row per pair of test images: the first, x_hat along the straight line between the means, the second."""
    count = max(1, min(count, len(images) // 2))
    pairs = [0, len(images) - 1] if len(images) < 2 * count else range(2 * count)
    x = to_model(vae, images[list(pairs)])
    z = vae.ops.to_host(vae.encode(x)).copy()
    x = vae.ops.to_host(x)
    rows = []
    for i in range(0, 2 * count, 2):
        weight = np.linspace(0, 1, columns - 2)[:, None]
        rows += [x[i : i + 1], decode(vae, (1 - weight) * z[i] + weight * z[i + 1]), x[i + 1 : i + 2]]
    save_grid(path, np.concatenate(rows), columns)


def to_model(vae, images):
    """uint8 images as the model takes them: [-1, 1] in its dtype, on its device."""
    return vae.ops.xp.asarray((images / 127.5 - 1).astype(vae.dtype))


def decode(vae, z):
    return vae.ops.to_host(vae.decode(vae.ops.xp.asarray(z.astype(vae.dtype))))


def save_grid(path, images, columns, scale=2):
    """Write images (N, H, W, C) in [-1, 1] as a PNG, row by row, pixels scale x scale, a thin white line between."""
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    grid = np.ones((rows * columns, height + 2, width + 2, channels), np.float32)
    grid[:n, 1:-1, 1:-1] = (np.clip(images, -1, 1) + 1) / 2
    grid = grid.reshape(rows, columns, height + 2, width + 2, channels).swapaxes(1, 2)
    grid = grid.reshape(rows * (height + 2), columns * (width + 2), channels)
    grid = np.repeat(np.repeat(grid, scale, 0), scale, 1)
    with replacing(path) as beside:
        imsave(beside, np.repeat(grid, 3, 2) if channels == 1 else grid, format="png")
