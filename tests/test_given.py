"""The images that commands of a run work on: those of a path, or the run's test images, by their names."""

import numpy as np
import pytest
from PIL import Image

from minivae.errors import UserError
from minivae.images import data, given, stream

SHAPE = 16, 16, 3


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (6, *SHAPE), np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_a_folder_keeps_names_and_classes(tmp_path, images):
    for row, image in enumerate(images):
        save(tmp_path / ("cat" if row % 2 else "dog") / f"{row}.png", image)
    split = given.read(tmp_path, SHAPE)
    assert split.label_names == ["cat", "dog"] and split.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert split.names == ["cat/1.png", "cat/3.png", "cat/5.png", "dog/0.png", "dog/2.png", "dog/4.png"]
    np.testing.assert_array_equal(split.images, images[[1, 3, 5, 0, 2, 4]])


def test_nothing_is_held_out_of_one_image(tmp_path, images):
    save(tmp_path / "one.png", images[0])
    split = given.read(tmp_path / "one.png", SHAPE)
    assert split.names == ["one.png"]
    np.testing.assert_array_equal(split.images, images[:1])


def test_training_and_test_images_follow_each_other(tmp_path, images):
    np.savez(tmp_path / "a.npz", train=images[:4], test=images[4:], train_labels=range(4), test_labels=[7, 8])
    split = given.read(tmp_path / "a.npz", SHAPE)
    assert split.names == ["train/0", "train/1", "train/2", "train/3", "test/0", "test/1"]
    np.testing.assert_array_equal(split.images, images)
    np.testing.assert_array_equal(split.labels, [0, 1, 2, 3, 7, 8])
    np.savez(tmp_path / "b.npz", train=images[:4], test=images[4:], train_labels=range(4))
    assert given.read(tmp_path / "b.npz", SHAPE).labels is None  # rather than labels of some
    texts = dict(train_labels=["b", "a", "c", "b"], test_labels=["d", "a"])
    np.savez(tmp_path / "c.npz", train=images[:4], test=images[4:], **texts)
    split = given.read(tmp_path / "c.npz", SHAPE)
    assert [split.label_names[label] for label in split.labels] == ["b", "a", "c", "b", "d", "a"]


def test_training_and_test_images_of_two_shapes(tmp_path, images):
    np.savez(tmp_path / "a.npz", train=images, test=images[:, :8, :8])
    with pytest.raises(UserError, match=r"training images of \(16, 16, 3\) and test images of \(8, 8, 3\)"):
        given.read(tmp_path / "a.npz", SHAPE)


def test_the_runs_size_is_applied(tmp_path, images, rng):
    save(tmp_path / "large.png", rng.integers(0, 256, (40, 30, 3), np.uint8))
    assert given.read(tmp_path, SHAPE, (16, 16)).images.shape == (1, *SHAPE)
    with pytest.raises(UserError, match="40x30 pixels, and 8 must divide both; train with --size"):
        given.read(tmp_path, SHAPE)
    np.save(tmp_path / "large.npy", np.zeros((1, 24, 16, 3), np.uint8))
    with pytest.raises(UserError, match=r"24x16x3 \(height, width, channels\), and the model takes 16x16x3; .*--size"):
        given.read(tmp_path / "large.npy", SHAPE)


def test_grey_images_for_a_colour_model(tmp_path, images):
    save(tmp_path / "grey.png", images[0, ..., 0])
    split = given.read(tmp_path, SHAPE)
    np.testing.assert_array_equal(split.images, np.repeat(images[:1, ..., :1], 3, 3))
    assert split.notes == ["grey images become colour, as the run's images are"]
    save(tmp_path / "colour.png", images[0])
    with pytest.raises(UserError, match="16x16x3"):
        given.read(tmp_path / "colour.png", (16, 16, 1))


def test_images_that_do_not_fit_in_memory(tmp_path, images, monkeypatch):
    data.write_hdf5(tmp_path / "one.h5", "here", [("train", images, None)])
    data.write_hdf5(tmp_path / "two.h5", "here", [("train", images, None), ("test", images, None)])
    monkeypatch.setattr(stream, "memory", lambda: 1000)
    split = given.read(tmp_path / "one.h5", SHAPE)
    assert isinstance(split.images, stream.Streamed) and split.names == list("012345")
    with pytest.raises(UserError, match="training and test images that do not fit in memory"):
        given.read(tmp_path / "two.h5", SHAPE)


def test_the_runs_test_images_are_named_and_in_order(tmp_path, rng):
    many = rng.integers(0, 256, (7000, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "a.npz", train=many[:10], test=many, test_labels=np.arange(7000), train_labels=np.arange(10))
    dataset = data.load(str(tmp_path / "a.npz"), None)
    split = given.test_images(dataset)
    np.testing.assert_array_equal(split.images, many[data.test_rows(len(many))])
    np.testing.assert_array_equal(split.images, many[split.labels])
    assert split.names == [str(label) for label in split.labels]


def test_names_that_are_not_there():
    assert given.rows_named(["a.png", "b.png", "c.png"], ["c.png", "a.png", "c.png"]) == [2, 0, 2]
    with pytest.raises(UserError, match=r"no image is named cats/07.pgn; there are such as cats/07.png, "):
        given.rows_named([f"cats/{n:02}.png" for n in range(20)], ["cats/07.pgn"])
    with pytest.raises(UserError, match="no image is named x; there are such as 0, 1, 2$"):
        given.rows_named(given.numbers(9), ["x"])
