"""Pictures: their sizes, their order, and a run too short for any losses."""

import numpy as np
import pytest
from matplotlib.image import imread

from minivae.training import figures


@pytest.mark.parametrize("rows", [[], [{"step": 100.0, "train_loss": 90.0, "train_rec": 75.0, "train_kl": 15.0}]])
def test_losses_of_a_short_run(tmp_path, rows):
    figures.draw_losses(tmp_path / "losses.png", rows)
    assert imread(tmp_path / "losses.png").std() > 0


def test_negative_losses_are_in_view(tmp_path):
    """With a fitted sigma a loss may be below zero; the limits must then still hold every settled value."""
    rows = [{"step": 100.0 * i, "train_loss": -900.0 - i, "train_rec": -920.0 - i, "train_kl": 20.0} for i in range(20)]
    limits = []

    class Axis(figures.Figure):
        def savefig(self, *arguments, **options):
            limits.extend(axis.get_ylim() for axis in self.axes)
            super().savefig(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "Figure", Axis)
        figures.draw_losses(tmp_path / "losses.png", rows)
    assert limits[0][0] < -919 and limits[0][1] > -901


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_its_images_in_rows(tmp_path, channels):
    images = np.linspace(-1, 1, 5)[:, None, None, None] * np.ones((1, 8, 16, channels), np.float32)
    figures.save_grid(tmp_path / "grid.png", images, columns=3, scale=2)
    picture = imread(tmp_path / "grid.png")[..., :3]
    assert picture.shape == (2 * 2 * 10, 3 * 2 * 18, 3)
    middles = picture[10::20, 18::36, 0]
    np.testing.assert_allclose(middles, [[0, 0.25, 0.5], [0.75, 1, 1]], atol=0.01)  # the last place is empty
