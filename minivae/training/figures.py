"""Pictures of a run: losses, samples, reconstructions, interpolations, latents one by one."""

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from minivae.files import replacing
from minivae.noise import Noise, numbered
from minivae.ops import HALF_RANGE

GRID_COLUMNS = 20
FARTHEST = 3  # standard deviations of the prior, between which all but 0.3 % of it lies
TRAVERSED = 30  # latents in a picture


def draw_all(run, vae, test_images, test_labels=None):
    draw_losses(run / "losses.png", run.metrics())
    draw_samples(run / "samples.png", vae)
    draw_reconstructions(run / "reconstructions.png", vae, test_images, labels=test_labels)


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


def draw_samples(path, vae, count=None, seed=0, label=None, draws=False):
    """x_hat of `count` (default: sample_count) codes from the prior, in rows of 20, with sample_labels.

    Below each row of x_hat stands one of draws of p(x|z), if they are asked for or sigma is fitted: x_hat alone may be
    little of what such a model knows.
    """
    count = count or sample_count(vae)
    x_hat = sample(vae, count, seed, label)
    if draws or vae.dequantized:
        save_pairs(path, x_hat, sample(vae, count, seed, label, draws=True), GRID_COLUMNS)
    else:
        save_grid(path, x_hat, GRID_COLUMNS)


def sample(vae, count, seed, label=None, draws=False):
    """x_hat, or draws of p(x|z), of `count` codes from the prior with sample_labels."""
    noise = Noise(seed, "simulated pixels", numbered(count)) if draws else None
    return decode(vae, prior(vae, count, seed), sample_labels(vae, count, label), noise)


def sample_count(vae):
    """How many samples are drawn unless another number is asked for: ten rows, or one for each label."""
    return GRID_COLUMNS * (vae.label.classes or 10)


def sample_labels(vae, count, label=None):
    """`label` for each of `count` samples, or else the next label for each row; None for a model that is given none."""
    if vae.label.classes == 0:
        return None
    return np.arange(count) // GRID_COLUMNS % vae.label.classes if label is None else np.full(count, label)


def prior(vae, count, seed):
    """`count` draws z (N, Z) from the prior, as the reference draws them."""
    return np.random.RandomState(seed).randn(count, vae.latent)


def draw_reconstructions(path, vae, images, count=50, columns=10, labels=None):
    """Test images above their reconstructions, z the mean of q(z|x); labels (N,), for a model that is given them."""
    x = to_model(vae, images[:count])
    labels = None if labels is None else labels[:count]
    save_pairs(path, vae.ops.to_host(x), decode(vae, vae.ops.to_host(vae.encode(x)), labels), columns)


def draw_interpolation(path, vae, images, count=10, columns=12, labels=None):
    """One row per pair of test images: the first, x_hat along the straight line between the means, the second.

    labels (N,), for a model that is given them: each x_hat has that of the image whose mean is nearer.
    """
    count = max(1, min(count, len(images) // 2))
    pairs = np.arange(2 * count) % len(images)
    x = to_model(vae, images[pairs])
    z = vae.ops.to_host(vae.encode(x)).reshape(count, 2, 1, vae.latent)
    weight = np.linspace(0, 1, columns - 2)[:, None]
    codes = (1 - weight) * z[:, 0] + weight * z[:, 1]  # (count, columns - 2, Z)
    nearer = None if labels is None else labels[pairs].repeat((columns - 2) // 2)
    between = decode(vae, codes.reshape(-1, vae.latent), nearer).reshape(*codes.shape[:2], *vae.shape)
    ends = vae.ops.to_host(x).reshape(count, 2, 1, *vae.shape)
    rows = np.concatenate([ends[:, 0], between, ends[:, 1]], axis=1)
    save_grid(path, rows.reshape(-1, *vae.shape), columns)


def draw_traversal(path, vae, code, kl, columns=13, labels=None):
    """x_hat of `code` (Z,) with one latent a row set to values from -FARTHEST to FARTHEST, the others as they are.

    kl (Z,), nats: the latent of the largest has the first row. At most TRAVERSED latents are drawn.
    labels (1,): that of all of them, for a model that is given one.
    """
    latents = np.argsort(-kl, kind="stable")[:TRAVERSED]
    values = np.linspace(-FARTHEST, FARTHEST, columns)
    z = np.tile(code, (len(latents), columns, 1))
    for row, latent in enumerate(latents):
        z[row, :, latent] = values
    labels = None if labels is None else labels.repeat(len(latents) * columns)
    grid = to_grid(decode(vae, z.reshape(-1, vae.latent), labels), columns)
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


def decode(vae, z, labels=None, noise=None):
    """x_hat (N, H, W, C) of the codes z (N, Z) and labels (N,), or with noise draws of p(x|z), on the host.

    The model sees IMAGES_AT_ONCE at a time.
    """
    images = np.empty((len(z), *vae.shape), vae.dtype)
    starts = range(0, len(z), vae.ops.IMAGES_AT_ONCE)
    for start in tqdm(starts, unit="batch", delay=1, leave=False, disable=None):
        rows = slice(start, start + vae.ops.IMAGES_AT_ONCE)
        of_rows = None if labels is None else vae.ops.xp.asarray(labels[rows], np.int32)
        codes = vae.ops.xp.asarray(z[rows].astype(vae.dtype))
        decoded = vae.decode(codes, of_rows) if noise is None else vae.draw(codes, noise.of(rows), of_rows)
        images[rows] = vae.ops.to_host(decoded)
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
