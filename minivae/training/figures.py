"""Pictures of a run: losses, samples, reconstructions, interpolations, latents one by one."""

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from minivae.files import replacing
from minivae.ops import HALF_RANGE

GRID_COLUMNS = 20
FARTHEST = 3  # standard deviations of the prior, between which all but 0.3 % of it lies
TRAVERSED = 30  # latents in a picture


def draw_all(run, vae, test_images):
    draw_losses(run / "losses.png", run.metrics())
    draw_samples(run / "samples.png", vae)
    draw_reconstructions(run / "reconstructions.png", vae, test_images)


def draw_losses(path, metrics):
    """Loss and its parts over the steps, nats per image: training as lines, test as points."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    titles = {"loss": "loss = rec + kl", "rec": "reconstruction", "kl": "kl"}
    for axis, (part, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        drawn = []
        for split, style in (("train", "-"), ("test", "o")):
            name = f"{split}_{part}"
            points = np.array([(row["step"], row[name]) for row in metrics if name in row])
            if len(points):
                marked = style if len(points) > 1 else "o"  # a line through one point would not be seen
                axis.plot(*points.T, marked, label=split, ms=4)
                drawn.append(points)
        if drawn:  # a run may be stopped before its first row
            axis.set_ylim(limits(*np.concatenate(drawn).T))
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("nats per image")
    if figure.axes[0].lines:
        figure.axes[0].legend()
    with replacing(path) as beside:
        figure.savefig(beside, dpi=130, format="png")


def limits(steps, values):
    """The vertical limits that show every value but those of the run's first tenth, which would flatten the others."""
    settled = values[steps > steps.max() / 10]
    low, high = settled.min(), settled.max()
    margin = 0.05 * (high - low) or 1
    return low - margin, high + margin


def draw_samples(path, vae, count=200, seed=0):
    """x_hat of `count` draws from the prior, in rows of 20."""
    save_grid(path, decode(vae, prior(vae, count, seed)), GRID_COLUMNS)


def prior(vae, count, seed):
    """`count` draws z (N, Z) from the prior, as the reference draws them."""
    return np.random.RandomState(seed).randn(count, vae.latent)


def draw_reconstructions(path, vae, images, count=50, columns=10):
    """Test images above their reconstructions, z the mean of q(z|x)."""
    x = to_model(vae, images[:count])
    save_pairs(path, vae.ops.to_host(x), decode(vae, vae.ops.to_host(vae.encode(x))), columns)


def draw_interpolation(path, vae, images, count=10, columns=12):
    """One row per pair of test images: the first, x_hat along the straight line between the means, the second."""
    count = max(1, min(count, len(images) // 2))
    x = to_model(vae, images[np.arange(2 * count) % len(images)])
    z = vae.ops.to_host(vae.encode(x)).reshape(count, 2, 1, vae.latent)
    weight = np.linspace(0, 1, columns - 2)[:, None]
    codes = (1 - weight) * z[:, 0] + weight * z[:, 1]  # (count, columns - 2, Z)
    between = decode(vae, codes.reshape(-1, vae.latent)).reshape(*codes.shape[:2], *vae.shape)
    ends = vae.ops.to_host(x).reshape(count, 2, 1, *vae.shape)
    rows = np.concatenate([ends[:, 0], between, ends[:, 1]], axis=1)
    save_grid(path, rows.reshape(-1, *vae.shape), columns)


def draw_traversal(path, vae, code, kl, columns=13):
    """x_hat of `code` (Z,) with one latent a row set to values from -FARTHEST to FARTHEST, the others as they are.

    kl (Z,), nats: the latent of the largest has the first row. At most TRAVERSED latents are drawn.
    """
    latents = np.argsort(-kl, kind="stable")[:TRAVERSED]
    values = np.linspace(-FARTHEST, FARTHEST, columns)
    z = np.tile(code, (len(latents), columns, 1))
    for row, latent in enumerate(latents):
        z[row, :, latent] = values
    grid = to_grid(decode(vae, z.reshape(-1, vae.latent)), columns)
    height, width = (side + 2 for side in vae.shape[:2])
    inch = max(0.02, 0.5 / width)  # of a pixel: room for the values above the columns
    size = 1.5 + columns * width * inch, 0.8 + len(latents) * height * inch
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    axis.imshow(grid, "gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_xticks((np.arange(columns) + 0.5) * width, [f"{value:g}" for value in values])
    axis.set_yticks((np.arange(len(latents)) + 0.5) * height, [f"z{latent}, KL {kl[latent]:.2f}" for latent in latents])
    axis.set_xlabel("value of the latent; KL(q(z|x) || p(z)) in nats")
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    with replacing(path) as beside:
        figure.savefig(beside, dpi=100, format="png")


def to_model(vae, images):
    """uint8 images as the model takes them: [-1, 1] in its dtype, on its device."""
    return vae.ops.xp.asarray((images / HALF_RANGE - 1).astype(vae.dtype))


def decode(vae, z):
    """x_hat (N, H, W, C) of the codes z (N, Z) on the host; the model sees IMAGES_AT_ONCE of them at a time."""
    images = np.empty((len(z), *vae.shape), vae.dtype)
    for start in range(0, len(z), vae.ops.IMAGES_AT_ONCE):
        rows = slice(start, start + vae.ops.IMAGES_AT_ONCE)
        images[rows] = vae.ops.to_host(vae.decode(vae.ops.xp.asarray(z[rows].astype(vae.dtype))))
    return images


def to_uint8(images):
    """Images in [-1, 1], or a little outside, as grey levels."""
    return np.rint((np.clip(images, -1, 1) + 1) * HALF_RANGE).astype(np.uint8)


def save_grid(path, images, columns, scale=2):
    """Write images (N, H, W, C) in [-1, 1] as a PNG, row by row, pixels scale x scale."""
    picture = Image.fromarray(to_grid(images, columns))
    picture = picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST)
    with replacing(path) as beside:
        picture.save(beside, format="png")


def save_pairs(path, above, below, columns):
    """Two sets of as many images (N, H, W, C): each row of the first has that of the second below it."""
    pairs = np.stack([above, below])
    pairs = np.pad(pairs, ((0, 0), (0, -len(above) % columns), *3 * [(0, 0)]), constant_values=1)
    rows = pairs.reshape(2, -1, columns, *above.shape[1:]).swapaxes(0, 1)
    save_grid(path, rows.reshape(-1, *above.shape[1:]), columns)


def to_grid(images, columns):
    """Images (N, H, W, C) in [-1, 1] as one uint8 picture, row by row, a thin white line around each."""
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    grid = np.full((rows * columns, height + 2, width + 2, channels), 255, np.uint8)
    grid[:n, 1:-1, 1:-1] = to_uint8(images)
    grid = grid.reshape(rows, columns, height + 2, width + 2, channels).swapaxes(1, 2)
    grid = grid.reshape(rows * (height + 2), columns * (width + 2), channels)
    return grid[..., 0] if channels == 1 else grid
