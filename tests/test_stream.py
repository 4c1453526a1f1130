"""Data that do not fit in memory: the same batches and bits as in memory, under a limit that the file exceeds."""

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_train import config

from minivae.errors import UserError
from minivae.images import data, stream
from minivae.training.evaluation import Evaluation
from minivae.training.trainer import Trainer
from minivae.vae import Widths

ROOT = Path(__file__).parent.parent


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (100, 8, 8, 3), np.uint8)


@pytest.fixture
def both(tmp_path, images, monkeypatch):
    """The same data set in memory and streamed."""
    path = tmp_path / "a.h5"
    data.write_hdf5(path, "test", [("train", images, None), ("test", images[::-3] ^ 1, None)])
    held = data.load(str(path), None)
    monkeypatch.setattr(stream, "memory", lambda: 1000)
    return held, data.load(str(path), None)


def small(dataset, ops, **changes):
    return Trainer(config(**changes), dataset.train.images, ops, np.float32, Widths((4, 5, 6), 7, (8, 6, 5)))


def test_streamed_images_are_those_of_the_array(both, images):
    streamed = both[1].train.images
    assert isinstance(streamed, stream.Streamed) and streamed.shape == images.shape and len(streamed) == 100
    for rows in (slice(3, 40), np.array([5, 99, 0, 5]), np.array([], int), slice(0, 0), slice(98, 200)):
        np.testing.assert_array_equal(streamed[rows], images[rows])
    assert both[0].train.sha256 == both[1].train.sha256 and both[0].test.sha256 == both[1].test.sha256


@pytest.mark.parametrize("options", [{"chunks": (7, 8, 8, 3), "compression": "gzip"}, {"chunks": (1, 8, 8, 3)}, {}])
@pytest.mark.parametrize("direct", [True, False])
def test_any_layout_inside_the_file(tmp_path, images, options, direct, monkeypatch):
    """Also where the system cannot read at a given place."""
    if not direct:
        monkeypatch.delattr(os, "preadv")
    monkeypatch.setattr(stream, "memory", lambda: 1000)
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=512) as f:
        for split in ("train", "test"):
            f.create_dataset(f"{split}/images", data=images, **options)
    streamed = data.load(str(tmp_path / "a.h5"), None).train.images
    np.testing.assert_array_equal(streamed[np.array([50, 3, 99])], images[[50, 3, 99]])


@pytest.mark.parametrize("part", [2**25, 5000])
def test_training_gives_the_same_bits(both, ops, monkeypatch, part):
    """Whatever the window; also when it starts in the middle of one, as after a resume."""
    monkeypatch.setattr("minivae.training.batches.CHUNK_BYTES", part)
    held, streamed = (small(d, ops) for d in both)
    for t in (held, streamed):
        for _ in range(3):
            t.step()
        t.batches.next = {}
        for _ in range(10):
            t.step()
    np.testing.assert_array_equal(held.vae.params.values, streamed.vae.params.values)
    np.testing.assert_array_equal(held.history, streamed.history)
    np.testing.assert_array_equal(Evaluation(held.vae, both[0].test.images, 0).losses(),
                                  Evaluation(held.vae, both[1].test.images[:], 0).losses())


def test_unseen_images_are_told_from_streamed_ones(both, images, monkeypatch):
    monkeypatch.setattr(stream, "CHUNK_BYTES", 7 * 192)  # chunks of 7 images, the last one shorter
    for d in both:
        assert data.unseen(d.test.images, d.train.images) == list(range(len(d.test.images)))
        for repeated in (0, 7, 99):
            some = np.stack([images[0] ^ 1, images[repeated], images[1] ^ 1])
            assert data.unseen(some, d.train.images) == [0, 2]
        copies = np.stack([images[0] ^ 1, images[1] ^ 1, images[0] ^ 1, images[5]])
        assert data.unseen(copies, d.train.images) == [0, 1]
        with pytest.raises(UserError, match="every test image occurs in the training set"):
            data.unseen(images[[7, 3]], d.train.images)


def test_a_file_that_ends_while_it_is_read(both, ops, tmp_path):
    t = small(both[1], ops)
    t.step()
    with open(tmp_path / "a.h5", "r+b") as f:
        f.truncate(3000)
    with pytest.raises(UserError, match="a.h5 can no longer be read.*restore it, then resume"):
        for _ in range(20):
            t.step()


@pytest.mark.parametrize("chunks", [None, (1, 8, 8, 3)])
def test_no_zeros_are_read_from_a_file_that_became_shorter(tmp_path, images, chunks, monkeypatch):
    monkeypatch.setattr(stream, "memory", lambda: 1000)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as f:
        for split in ("train", "test"):
            f.create_dataset(f"{split}/images", data=images, chunks=chunks)
    size = path.stat().st_size
    train = data.load(str(path), None).train.images
    np.testing.assert_array_equal(train[:], images)
    with open(path, "r+b") as f:
        f.truncate(size // 2)
    for row in range(100):
        with pytest.raises(UserError, match="can no longer be read"):
            train[row : row + 1]


def test_memory_is_the_least_of_the_limits():
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = 2**33
    try:
        resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert 0 < stream.memory() <= min(limit, machine)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_images_up_to_a_quarter_of_the_memory_are_held(tmp_path, images, monkeypatch):
    data.write_hdf5(tmp_path / "a.h5", "test", [("train", images, None), ("test", images[:4], None)])
    for memory, kind in ((4 * images.nbytes, np.ndarray), (4 * images.nbytes - 1, stream.Streamed)):
        monkeypatch.setattr(stream, "memory", lambda memory=memory: memory)
        found = data.load(str(tmp_path / "a.h5"), None)
        assert isinstance(found.train.images, kind) and isinstance(found.test.images, np.ndarray)


def test_the_hash_depends_on_the_shape(images):
    assert len({stream.sha256(images.reshape(shape)) for shape in ((100, 8, 8, 3), (100, 64, 3), (50, 384))}) == 3


def test_chunks_are_the_images_in_turn(images, monkeypatch):
    for size, largest in ((1, 1), (5 * 192, 5), (10**6, 100)):
        monkeypatch.setattr(stream, "CHUNK_BYTES", size)
        chunks = list(stream.chunks(images))
        np.testing.assert_array_equal(np.concatenate(chunks), images)
        assert {len(chunk) for chunk in chunks} == {largest}


def test_chunks_are_made_ready_in_the_background(both, ops):
    """Each once when they come in turn; errors reach who asks; a chunk out of turn is made when it is asked for."""
    batches = small(both[1], ops).batches  # chunks of four steps
    draw = batches.draw
    made = []

    def drawn(chunk):
        made.append((chunk, threading.current_thread()))
        if chunk == 3:
            raise ValueError("three")
        return draw(chunk)

    batches.draw = drawn
    for step in range(12):
        batches.prepare(step)
        np.testing.assert_array_equal(batches.device_images, batches.images[draw(step // 4).reshape(-1)])
    with pytest.raises(ValueError, match="three"):
        batches.prepare(12)
    for step in (31, 0):
        batches.prepare(step)
        np.testing.assert_array_equal(batches.device_images, batches.images[draw(step // 4).reshape(-1)])
    batches.pool.shutdown()
    assert [chunk for chunk, _ in made] == [0, 1, 2, 3, 7, 8, 0, 1]
    assert threading.main_thread() not in {thread for _, thread in made}


def test_what_cannot_be_streamed_says_so(tmp_path, images, monkeypatch):
    monkeypatch.setattr(stream, "memory", lambda: 1000)
    small = np.zeros((20, 28, 28, 3), np.uint8)
    for name, content in (("floats", images / 255), ("flat", images[..., 0]), ("28x28", small)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as f:
            f["train/images"] = f["test/images"] = content
        with pytest.raises(UserError, match="does not fit in memory.*uint8"):
            data.load(str(tmp_path / f"{name}.h5"), None)
    data.write_hdf5(tmp_path / "alone.h5", "test", [("train", images, None)])
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
