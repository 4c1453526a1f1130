"""Data that do not fit in memory: the same batches and bits as in memory, under a limit that the file exceeds."""

import resource
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_train import config

from minivae.density import card
from minivae.errors import UserError
from minivae.images import data, stream
from minivae.training.loop import Trainer
from minivae.vae import Widths

ROOT = Path(__file__).parent.parent


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (100, 8, 8, 3), np.uint8)


@pytest.fixture
def both(tmp_path, images, monkeypatch):
    """The same data set in memory and streamed."""
    path = tmp_path / "a.h5"
    data.write_hdf5(path, "test", {"train": (images, None), "test": (images[::-3] ^ 1, None)})
    held = data.load(str(path), None)
    monkeypatch.setattr(stream, "memory", lambda: 1000)
    return held, data.load(str(path), None)


def small(dataset, ops, **changes):
    return Trainer(config(**changes), dataset, ops, np.float32, Widths((4, 5, 6), 7, (8, 6, 5)))


def test_streamed_images_are_those_of_the_array(both, images):
    streamed = both[1].train.images
    assert isinstance(streamed, stream.Streamed) and streamed.shape == images.shape and len(streamed) == 100
    for rows in (slice(3, 40), np.array([5, 99, 0, 5]), np.array([], int), slice(0, 0), slice(98, 200)):
        np.testing.assert_array_equal(streamed[rows], images[rows])
    assert both[0].train.sha256 == both[1].train.sha256 and both[0].test.sha256 == both[1].test.sha256


@pytest.mark.parametrize("options", [{"chunks": (7, 8, 8, 3), "compression": "gzip"}, {"chunks": (1, 8, 8, 3)}, {}])
def test_any_layout_inside_the_file(tmp_path, images, options, monkeypatch):
    monkeypatch.setattr(stream, "memory", lambda: 1000)
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=512) as f:
        for split in ("train", "test"):
            f.create_dataset(f"{split}/images", data=images, **options)
    streamed = data.load(str(tmp_path / "a.h5"), None).train.images
    np.testing.assert_array_equal(streamed[np.array([50, 3, 99])], images[[50, 3, 99]])


@pytest.mark.parametrize("part", [2**25, 5000])
def test_training_gives_the_same_bits(both, ops, monkeypatch, part):
    """Whatever the window; also when it starts in the middle of one, as after a resume."""
    monkeypatch.setattr("minivae.training.loop.PART", part)
    held, streamed = (small(d, ops) for d in both)
    for t in (held, streamed):
        for _ in range(3):
            t.step()
        t.window = None
        for _ in range(10):
            t.step()
    np.testing.assert_array_equal(held.vae.params.values, streamed.vae.params.values)
    np.testing.assert_array_equal(held.history, streamed.history)
    np.testing.assert_array_equal(held.test_losses(), streamed.test_losses())


def test_evaluation_reads_streamed_images(both, images):
    for d in both:
        card.refuse_overlap(d.train.images, d.test.images)
        with pytest.raises(UserError, match="1 of 2 test images occur.*image 1 first"):
            card.refuse_overlap(d.train.images, np.stack([images[0] ^ 1, images[7]]))


def test_a_file_that_ends_while_it_is_read(both, ops, tmp_path):
    t = small(both[1], ops)
    t.step()
    with open(tmp_path / "a.h5", "r+b") as f:
        f.truncate(3000)
    with pytest.raises(UserError, match="a.h5 cannot be read any more.*put it back"):
        for _ in range(20):
            t.step()


def test_what_cannot_be_streamed_says_so(tmp_path, images, monkeypatch):
    monkeypatch.setattr(stream, "memory", lambda: 1000)
    for name, content in (("floats", images / 255), ("flat", images[..., 0])):
        with h5py.File(tmp_path / f"{name}.h5", "w") as f:
            f["train/images"] = f["test/images"] = content
        with pytest.raises(UserError, match="does not fit in memory.*uint8"):
            data.load(str(tmp_path / f"{name}.h5"), None)
    data.write_hdf5(tmp_path / "alone.h5", "test", {"train": (images, None)})
    with pytest.raises(UserError, match="add a group named test"):
        data.load(str(tmp_path / "alone.h5"), None)


@pytest.mark.long
def test_a_file_of_twice_the_memory(tmp_path):
    """RLIMIT_AS bounds the process; the images, all zeros in a file with holes, are twice as large."""
    limit, count = 2**30, 2**31 // 3072
    with h5py.File(tmp_path / "large.h5", "w") as f:
        early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space, kind = h5py.h5s.create_simple((count, 32, 32, 3)), h5py.h5t.NATIVE_UINT8
        h5py.h5d.create(f.create_group("train").id, b"images", kind, space, early)
        f["test/images"] = np.ones((20, 32, 32, 3), np.uint8)
    command = [sys.executable, ROOT / "run.py", "--data", "large.h5", "--steps", "4", "--batch-size", "8",
               "--log-every", "2", "--out", "run"]

    def limit_memory():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, preexec_fn=limit_memory)
    assert done.returncode == 0, done.stderr
    assert f"on {count} images" in done.stdout
