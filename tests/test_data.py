"""What data.load gives for each source, and the one line it gives for everything else."""

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

from minivae import data
from minivae.errors import UserError


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (40, 8, 16, 3), np.uint8)


def refused(source, *words):
    with pytest.raises(UserError) as e:
        data.load(str(source), None)
    assert all(word in str(e.value) for word in words), e.value
    assert "\n" not in str(e.value)


def write(kind, path, images, labels):
    """A source of each kind under `path` with images as train and test; the file that holds them."""
    if kind == "mat":
        for split in ("train", "test"):
            tens = np.where(labels == 0, 10, labels)[:, None]
            content = {"X": images.transpose(1, 2, 3, 0), "y": tens}
            scipy.io.savemat(path / f"{split}_32x32.mat", content, do_compression=True)
        return path, path / "train_32x32.mat"
    file = path / f"data.{kind}"
    if kind == "npz":
        np.savez_compressed(file, train=images, test=images, train_labels=labels, test_labels=labels)
    else:
        data.write_hdf5(file, "test", {"train": (images, labels), "test": (images, labels)})
    return file, file


@pytest.mark.parametrize("kind", ["mat", "npz", "h5"])
def test_every_kind_reads_back(tmp_path, images, kind):
    labels = np.arange(40) % 10
    source, _ = write(kind, tmp_path, images, labels)
    found = data.load(str(source), None)
    for split in (found.train, found.test):
        np.testing.assert_array_equal(split.images, images)
        np.testing.assert_array_equal(split.labels, labels)
        assert split.images.flags.c_contiguous and split.images.dtype == np.uint8
    assert found.notes == []


def damage(kind, tmp_path, images, flips, cuts):
    """Every damaged file gives a data set or a UserError, nothing else."""
    source, file = write(kind, tmp_path, images, np.arange(40) % 10)
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    for cut in np.linspace(0, len(whole) - 1, cuts).astype(int):
        file.write_bytes(whole[:cut])
        refused(source, str(file))
    found = 0
    for _ in range(flips):
        broken = bytearray(whole)
        broken[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        file.write_bytes(broken)
        try:
            data.load(str(source), None)
        except UserError:
            found += 1
    return found


@pytest.mark.parametrize("kind", ["mat", "npz", "h5"])
def test_damaged_files(tmp_path, images, kind):
    assert damage(kind, tmp_path, images, 30, 12) > 0


@pytest.mark.long
@pytest.mark.parametrize("kind", ["mat", "npz", "h5"])
def test_damaged_files_thoroughly(tmp_path, images, kind):
    assert damage(kind, tmp_path, images, 500, 50) > 0


def test_a_folder_of_images(tmp_path, rng):
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (16, 8), np.uint8)).save(tmp_path / f"{i:02}.png")
    found = data.load(str(tmp_path), None)
    assert found.train.images.shape == (18, 16, 8, 1) and found.test.images.shape == (2, 16, 8, 1)
    assert "held out" in found.notes[0] and found.train.labels is None
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "30.png")
    refused(tmp_path, "30.png", "one size")


def test_28x28_is_padded(tmp_path, rng):
    grey = rng.integers(1, 256, (30, 28, 28), np.uint8)
    np.savez(tmp_path / "a.npz", images=grey)
    found = data.load(str(tmp_path / "a.npz"), None)
    assert found.train.images.shape == (27, 32, 32, 1)
    assert not found.train.images[:, :2].any() and found.train.images[:, 2:-2, 2:-2].all()
    assert any("padded" in note for note in found.notes)
    rows = np.concatenate([found.train.images, found.test.images])[:, 2:-2, 2:-2, 0].reshape(30, -1)
    np.testing.assert_array_equal(np.unique(rows, axis=0), np.unique(grey.reshape(30, -1), axis=0))


def test_floats(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.linspace(0, 1, 10 * 64).reshape(10, 8, 8))
    assert data.load(str(tmp_path / "a.npz"), None).train.images.max() <= 255


@pytest.mark.parametrize("content, word", [
    (np.zeros((20, 12, 8, 3), np.uint8), "8 divides"),
    (np.zeros((20, 8, 8, 4), np.uint8), "(N, H, W, 3)"),
    (np.zeros((20, 8), np.uint8), "(N, H, W"),
    (np.zeros((0, 8, 8, 3), np.uint8), "no images"),
    (np.zeros((1, 8, 8, 3), np.uint8), "at least 10"),
    (np.full((20, 8, 8, 3), np.nan), "finite"),
    (np.full((20, 8, 8, 3), 255.0), "from 0 to 1"),
    (np.full((20, 8, 8, 3), 300), "from 0 to 255"),
    (np.full((20, 8, 8, 3), "a"), "uint8"),
    (np.full((20, 8, 8, 3), {}, object), "pickled"),
])
def test_wrong_arrays(tmp_path, content, word):
    np.savez(tmp_path / "a.npz", images=content)
    refused(tmp_path / "a.npz", word, "a.npz")


def test_wrong_labels(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((20, 8, 8), np.uint8), labels=np.zeros(19))
    refused(tmp_path / "a.npz", "labels")


def test_headers_that_claim_terabytes(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f.create_dataset("train/images", (10**9, 32, 32, 3), np.uint8, chunks=(1, 32, 32, 3))
    refused(tmp_path / "a.h5", "claims")


def test_files_of_another_kind(tmp_path):
    (tmp_path / "a.npz").write_text("no array")
    (tmp_path / "a.txt").write_text("no array")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "a.npz", "cannot be read")
    refused(tmp_path / "a.txt", "a folder, an .npz or an .h5")
    refused(tmp_path / "empty", "neither")


def test_an_altered_h5_is_noticed(tmp_path, images):
    source, _ = write("h5", tmp_path, images, np.arange(40))
    with h5py.File(source, "a") as f:
        f["train/images"][3, 2, 1, 0] ^= 1
    refused(source, "sha256")
