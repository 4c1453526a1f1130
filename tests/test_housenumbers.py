"""Images of our own making: the same bytes each time, legible, with SVHN's look in numbers, kept in a file."""

import os

import numpy as np
import pytest

from minivae.errors import UserError
from minivae.images import data, housenumbers


@pytest.fixture(scope="module")
def made():
    return housenumbers.make("train", count=2000)


def test_the_same_seed_gives_the_same_bytes(made):
    again, labels = housenumbers.make("train", count=1000)
    np.testing.assert_array_equal(again, made[0][:1000])
    np.testing.assert_array_equal(labels, made[1][:1000])
    other, _ = housenumbers.make("train", seed=1, count=1000)
    assert not {i.tobytes() for i in made[0]} & {i.tobytes() for i in other}


def test_no_test_image_is_a_training_image(made):
    test, _ = housenumbers.make("test", count=1000)
    assert test.shape == (1000, 32, 32, 3) and test.dtype == np.uint8
    assert not {i.tobytes() for i in test} & {i.tobytes() for i in made[0]}


def test_labels_name_the_digit(made):
    """The nearest of 1,900 images, by the shape of what stands out from the border, has the same label."""
    images, labels = made
    grey = images.mean(3)
    border = np.concatenate([grey[:, :4], grey[:, -4:]], 1).reshape(len(grey), -1)
    shape = grey - np.median(border, 1)[:, None, None]
    shape *= np.sign(shape[:, 8:24, 10:22].sum((1, 2)))[:, None, None]  # dark ink and light ink alike
    shape = shape[:, 2:30, 5:27].reshape(len(grey), -1)
    shape /= np.linalg.norm(shape, axis=1, keepdims=True)
    nearest = (shape[:100] @ shape[100:].T).argmax(1)
    assert (labels[100:][nearest] == labels[:100]).mean() > 0.8
    assert np.abs(np.bincount(labels, minlength=10) / len(labels) - housenumbers.FREQUENCY).max() < 0.03


@pytest.mark.parametrize("name, of, low, high", [  # around SVHN's medians, which benchmarks/housenumbers.py prints
    ("brightness", lambda x, g: g.mean((1, 2)), 0.40, 0.51),
    ("contrast", lambda x, g: g.std((1, 2)), 0.10, 0.14),
    ("sharpness", lambda x, g: np.abs(np.diff(g, axis=2)).mean((1, 2)) / g.std((1, 2)), 0.20, 0.30),
    ("saturation", lambda x, g: (x.max(3) - x.min(3)).mean((1, 2)), 0.04, 0.09),
])
def test_the_look(made, name, of, low, high):
    x = made[0] / 255
    assert low < np.median(of(x, x.mean(3))) < high


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(housenumbers, "COUNTS", {"train": 30, "test": 10})


def test_housenumbers_are_kept(tmp_path, few, monkeypatch):
    first = data.load("housenumbers", tmp_path)
    monkeypatch.setattr(housenumbers, "make", None)
    second = data.load("housenumbers", tmp_path)
    assert first.train.sha256 == second.train.sha256 and len(first.test.images) == 10
    assert [p.name for p in tmp_path.iterdir()] == ["housenumbers.h5"]


def test_a_damaged_file_says_how_to_get_another(tmp_path, few):
    path = tmp_path / "housenumbers.h5"
    path.write_bytes(b"not HDF5")
    with pytest.raises(UserError, match="housenumbers.h5 cannot be read.*if you delete .*, it is made again"):
        data.load("housenumbers", tmp_path)
    path.unlink()
    assert len(data.load("housenumbers", tmp_path).train.images) == 30


def test_what_is_being_made_in_words(few, tmp_path, monkeypatch, capsys):
    """A bar on a terminal, one line elsewhere."""
    bars = []

    def tqdm(iterable, description, **options):
        bars.append(description)
        return housenumbers_tqdm(iterable, description, **options)

    housenumbers_tqdm = housenumbers.tqdm
    monkeypatch.setattr(housenumbers, "tqdm", tqdm)
    data.load("housenumbers", tmp_path)
    assert bars == ["making the train images", "making the test images"]
    written = capsys.readouterr()
    assert written.out == f"making the housenumbers images, once, into {tmp_path / 'housenumbers.h5'}\n"
    assert written.err == ""


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(housenumbers, "make", None)
    (tmp_path / "file").write_text("")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"housenumbers.h5.{os.getpid()}.part").mkdir()  # even root cannot write there
    for folder in ("file", "data"):
        with pytest.raises(UserError, match=f"cannot write .*{folder}"):
            data.load("housenumbers", tmp_path / folder)
