"""Images of our own making: the same bytes each time, the look that they are meant to have, kept in a file."""

import numpy as np

from minivae import data, housenumbers


def test_housenumbers():
    images, labels = housenumbers.make("test", count=600)
    again, _ = housenumbers.make("test", count=600)
    np.testing.assert_array_equal(images, again)
    assert images.shape == (600, 32, 32, 3) and images.dtype == np.uint8
    assert np.bincount(labels, minlength=10).min() > 30
    other, _ = housenumbers.make("train", count=600)
    assert not {i.tobytes() for i in images} & {i.tobytes() for i in other}
    grey = images.mean(3) / 255
    assert 0.4 < grey.mean() < 0.52 and 0.08 < grey.std((1, 2)).mean() < 0.16


def test_housenumbers_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(housenumbers, "COUNTS", {"train": 30, "test": 10})
    first = data.load("housenumbers", tmp_path)
    monkeypatch.setattr(housenumbers, "make", None)
    second = data.load("housenumbers", tmp_path)
    assert first.train.sha256 == second.train.sha256 and len(first.test.images) == 10
    assert [p.name for p in tmp_path.iterdir()] == ["housenumbers.h5"]
