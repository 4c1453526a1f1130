"""Pictures: the pixels of each grid, and what the curves of the losses show."""

import numpy as np
import pytest
from PIL import Image

from minivae.training import figures
from minivae.vae import VAE, Widths

SHAPE = 8, 16, 3


@pytest.fixture
def vae(ops):
    """A small model whose x_hat depends strongly on z."""
    vae = VAE(SHAPE, 4, ops, widths=Widths((4, 5, 6), 7, (8, 6, 5)))
    for p in vae.params.trained:
        if p.name.endswith("gamma"):
            p.value[...] = 3
    return vae


@pytest.fixture
def images():
    return np.random.RandomState(0).randint(0, 256, (7, *SHAPE)).astype(np.uint8)


@pytest.fixture
def axes(monkeypatch):
    """The axes of a matplotlib picture, as they are when it is written."""
    axes = []

    class Watched(figures.Figure):
        def savefig(self, *arguments, **options):
            axes.extend(self.axes)
            super().savefig(*arguments, **options)

    monkeypatch.setattr(figures, "Figure", Watched)
    return axes


@pytest.fixture
def curves(tmp_path, axes):
    """curves(rows): the axes of losses.png."""

    def curves(rows):
        axes.clear()
        figures.draw_losses(tmp_path / "losses.png", rows)
        return axes

    return curves


def cells(path, columns):
    """The images of a grid (rows, columns, H, W, C) uint8; its lines must be white, its pixels in twos."""
    picture = np.array(Image.open(path))
    np.testing.assert_array_equal(picture[::2], picture[1::2])
    np.testing.assert_array_equal(picture[:, ::2], picture[:, 1::2])
    height, width, channels = SHAPE
    cells = picture[::2, ::2].reshape(-1, height + 2, columns, width + 2, channels).swapaxes(1, 2)
    inner = cells[:, :, 1:-1, 1:-1].copy()
    cells[:, :, 1:-1, 1:-1] = 255
    assert (cells == 255).all()
    return inner


def pixels(vae, z):
    """x_hat of one code (Z,) as uint8, on its own."""
    return np.rint((vae.decode(z[None].astype(np.float32))[0] + 1) * 127.5).astype(np.uint8)


def assert_same(found, expected):
    """Equal up to a grey level: products of other sizes round otherwise."""
    np.testing.assert_allclose(found.astype(int), expected.astype(int), rtol=0, atol=1)


def test_each_row_of_an_interpolation_shows_its_own_pair(vae, images, tmp_path):
    figures.draw_interpolation(tmp_path / "interpolation.png", vae, images)
    figures.draw_reconstructions(tmp_path / "reconstructions.png", vae, images)
    rows = cells(tmp_path / "interpolation.png", 12)
    images_and_means = cells(tmp_path / "reconstructions.png", 10)
    assert len(rows) == 3  # pairs of 7 images
    means = np.array(vae.encode(figures.to_model(vae, images)))
    for i, row in enumerate(rows):
        first, second = 2 * i, 2 * i + 1
        np.testing.assert_array_equal(row[0], images[first])
        np.testing.assert_array_equal(row[-1], images[second])
        assert_same(row[1], images_and_means[1, first])
        assert_same(row[-2], images_and_means[1, second])
        for column, weight in enumerate(np.linspace(0, 1, 10), 1):
            assert_same(row[column], pixels(vae, (1 - weight) * means[first] + weight * means[second]))
    middle = rows[:, 5].astype(int)
    assert all(abs(middle[i] - middle[j]).mean() > 10 for i, j in ((0, 1), (0, 2), (1, 2)))


def test_an_interpolation_of_one_image(vae, images, tmp_path):
    figures.draw_interpolation(tmp_path / "interpolation.png", vae, images[:1])
    row, = cells(tmp_path / "interpolation.png", 12)
    np.testing.assert_array_equal(row[0], row[-1])
    assert_same(row[1], row[-2])


@pytest.mark.parametrize("count", [3, 10, 13])
def test_reconstructions_stand_below_their_images(vae, images, tmp_path, count):
    images = np.concatenate([images, images])[:count]
    figures.draw_reconstructions(tmp_path / "reconstructions.png", vae, images)
    found = cells(tmp_path / "reconstructions.png", 10)
    assert len(found) == 2 * -(-count // 10)
    above, below = (found[start::2].reshape(-1, *SHAPE) for start in (0, 1))
    np.testing.assert_array_equal(above[:count], images)
    for image, mean in zip(below, np.array(vae.encode(figures.to_model(vae, images))), strict=False):
        assert_same(image, pixels(vae, mean))
    assert (above[count:] == 255).all() and (below[count:] == 255).all()


def test_samples_are_those_of_the_prior(vae, tmp_path, monkeypatch):
    """Any number of them, of which the model sees a few at a time."""
    monkeypatch.setattr(vae.ops, "IMAGES_AT_ONCE", 10)
    figures.draw_samples(tmp_path / "samples.png", vae, count=23, seed=5)
    assert vae.generator.dense.affine.x.shape == (3, 4)  # the last of 10, 10 and 3
    found = cells(tmp_path / "samples.png", 20).reshape(-1, *SHAPE)
    for image, z in zip(found[:23], np.random.RandomState(5).randn(23, 4), strict=True):
        assert_same(image, pixels(vae, z))
    assert (found[23:] == 255).all()


@pytest.mark.parametrize("latents", [30, 2])
def test_a_traversal_moves_one_latent_a_row(vae, axes, tmp_path, monkeypatch, latents):
    monkeypatch.setattr(figures, "TRAVERSED", latents)
    code = np.array([0.5, -1, 2, 0])
    figures.draw_traversal(tmp_path / "traverse.png", vae, code, np.array([0.1, 3, 0, 2]), columns=5)
    axis, = axes
    order = [1, 3, 0, 2][:latents]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["-3", "-1.5", "0", "1.5", "3"]
    labels = [text.get_text() for text in axis.get_yticklabels()]
    assert labels == ["z1, KL 3.00", "z3, KL 2.00", "z0, KL 0.10", "z2, KL 0.00"][:latents]
    picture = axis.images[0].get_array()
    height, width = SHAPE[0] + 2, SHAPE[1] + 2
    assert picture.shape == (len(order) * height, 5 * width, 3)
    for row, latent in enumerate(order):
        for column, value in enumerate((-3, -1.5, 0, 1.5, 3)):
            z = code.copy()
            z[latent] = value
            cell = picture[row * height :, column * width :][1 : height - 1, 1 : width - 1]
            assert_same(cell, pixels(vae, z))
    with Image.open(tmp_path / "traverse.png") as written:
        assert written.width > 5 * 2 * width


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_its_images_in_rows(tmp_path, channels):
    images = np.linspace(-1, 1, 5)[:, None, None, None] * np.ones((1, 8, 16, channels), np.float32)
    figures.save_grid(tmp_path / "grid.png", images, columns=3)
    picture = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    assert picture.shape == (2 * 2 * 10, 3 * 2 * 18, 3)
    middles = picture[10::20, 18::36, 0]
    np.testing.assert_array_equal(middles, [[0, 64, 128], [191, 255, 255]])  # the last place is empty


def metrics(steps, loss, test_every=None):
    """Rows of metrics.csv of loss(step) in three parts alike, with test losses at multiples of test_every."""
    rows = [{"step": float(s)} | {f"train_{part}": loss(s) for part in ("loss", "rec", "kl")} for s in steps]
    for row in rows:
        if test_every and row["step"] % test_every == 0:
            row |= {f"test_{part}": row[f"train_{part}"] + 1 for part in ("loss", "rec", "kl")}
    return rows


@pytest.mark.parametrize("loss", [lambda s: 60 + 20_000 / s, lambda s: 20 - 1000 / s,
                                  lambda s: -900 + 100_000 / s, lambda s: -900 - 0.001 * s, lambda s: 17.0],
                         ids=["falling", "rising", "negative", "barely moving", "constant"])
def test_all_but_the_first_losses_are_in_view_and_fill_it(curves, loss):
    rows = metrics(range(100, 2001, 100), loss, test_every=1000)
    settled = [value for row in rows[2:] for name, value in row.items() if name.endswith("_kl")]
    for axis in curves(rows):
        low, high = axis.get_ylim()
        assert low < min(settled) and max(settled) < high
        assert high - low <= 1.2 * (max(settled) - min(settled)) + 2 * (max(settled) == min(settled))


@pytest.mark.parametrize("rows", [[], metrics([100], lambda s: 90), metrics([1, 2, 3], lambda s: -s, 2)],
                         ids=["no row", "one row", "three rows"])
def test_losses_of_a_short_run(curves, rows):
    for axis in curves(rows):
        low, high = axis.get_ylim()
        assert all(low < row["train_kl"] < high for row in rows)


@pytest.mark.parametrize("test_every, labels", [(None, ["train"]), (1000, ["train", "test"])])
def test_the_legend_names_what_is_drawn(curves, test_every, labels):
    axes = curves(metrics(range(100, 2001, 100), lambda s: 60 + 1000 / s, test_every))
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == labels
    for axis in axes:
        assert [line.get_label() for line in axis.lines] == labels
