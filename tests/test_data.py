"""What data.load gives for each source, and the one line it gives for everything else."""

import contextlib
import hashlib
import http.server
import io
import pickle
import resource
import struct
import threading
import zipfile
import zlib

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

from minivae.errors import UserError
from minivae.images import data, readers


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


SUFFIXES = ["png", "jpg", "bmp", "gif", "tif", "webp", "ppm", "pgm"]


def damage_image(tmp_path, rng, suffix, flips, cuts):
    """A folder with a damaged image gives a data set or a UserError that names it; cuts that leave no picture are."""
    pixels = rng.integers(0, 256, (16, 16) if suffix == "pgm" else (16, 16, 3), np.uint8)
    for i in range(12):
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.{suffix}")
    file = tmp_path / f"03.{suffix}"
    whole = file.read_bytes()
    for cut in np.linspace(0, len(whole) // 2, cuts).astype(int):
        file.write_bytes(whole[:cut])
        refused(tmp_path, str(file))
    for _ in range(flips):
        broken = bytearray(whole)
        broken[rng.integers(min(len(whole), 200))] ^= 1 << rng.integers(8)  # headers are at the start
        file.write_bytes(broken)
        with contextlib.suppress(UserError):
            data.load(str(tmp_path), None)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_images(tmp_path, rng, suffix):
    damage_image(tmp_path, rng, suffix, 20, 5)


@pytest.mark.long
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_images_thoroughly(tmp_path, rng, suffix):
    damage_image(tmp_path, rng, suffix, 500, 50)


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


@pytest.mark.parametrize("labels, word", [
    (np.zeros(19), "(19,) for 20 images"), (np.zeros((20, 2)), "(20, 2)"), (np.full(20, np.nan), "whole numbers"),
    (np.full(20, 0.5), "whole numbers"), (np.full(20, "a"), "whole numbers"), (np.float64(3), "()"),
])
def test_wrong_labels(tmp_path, labels, word):
    np.savez(tmp_path / "a.npz", images=np.zeros((20, 8, 8), np.uint8), labels=labels)
    refused(tmp_path / "a.npz", "labels", word)


@pytest.mark.parametrize("kind", ["mat", "h5"])
@pytest.mark.parametrize("change, word", [
    (lambda x: x[..., :2], "(N, H, W, 3)"), (lambda x: x[:0], "no images"), (lambda x: x[:, :7], "8 divides"),
    (lambda x: np.where(x > 300, x, np.nan), "finite"), (lambda x: x * np.inf, "finite"), (lambda x: x[:1], "least 2"),
    (lambda x: x / 100, "from 0 to 1"), (lambda x: x.astype(np.int16) - 300, "from 0 to 255"),
])
def test_wrong_arrays_in_every_kind_of_file(tmp_path, images, kind, change, word):
    with np.errstate(invalid="ignore"):
        changed = change(images)
    source, file = write(kind, tmp_path, changed, np.zeros(len(changed), int))
    if kind == "mat" and len(changed) == 0:
        word = "holds no images"
    refused(source, word, file.name)


def test_few_images(tmp_path):
    for count in range(3):
        np.savez(tmp_path / "a.npz", images=np.zeros((count, 8, 8), np.uint8))
        refused(tmp_path / "a.npz", "a.npz", "at least 10" if count else "no images")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "only.png")
    refused(tmp_path, "holds 1 images; at least 10")


def test_images_of_16_bits_are_refused(tmp_path):
    for i in range(12):
        Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / f"{i}.png")
    refused(tmp_path, "I;16", "8 bits")


@pytest.fixture
def server():
    """A host of SVHN that breaks off: half of what it announced, or half of the file announced as the whole."""
    class Half(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "2000" if "train" in self.path else "1000")
            self.end_headers()
            self.wfile.write(bytes(1000))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Half) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_half_a_download_is_never_taken_for_the_whole(tmp_path, server, monkeypatch):
    monkeypatch.setattr(data, "SVHN_URL", server)
    with pytest.raises(UserError, match="cannot download .*train_32x32.mat.*put it at"):
        data.load("svhn", tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(data.SVHN_MD5, "train", hashlib.md5(b"whole").hexdigest())
    (tmp_path / "train_32x32.mat").write_bytes(b"whole")
    with pytest.raises(UserError, match="cannot download .*test_32x32.mat"):  # its length is right, its md5 is not
        data.load("svhn", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["train_32x32.mat"]
    (tmp_path / "train_32x32.mat").write_bytes(b"who")  # one cut short is not believed either
    with pytest.raises(UserError, match="cannot download .*train_32x32.mat"):
        data.load("svhn", tmp_path)


def test_mat_images_are_turned_in_place(rng):
    x = np.asfortranarray(rng.integers(0, 256, (8, 16, 3, 2500), np.uint8))
    expected = x.transpose(3, 0, 1, 2).copy()
    turned = readers._images_first(x)
    np.testing.assert_array_equal(turned, expected)
    assert np.shares_memory(turned, x) and turned.flags.c_contiguous


def huge_png(path, width, height):
    """A grey PNG whose header claims width x height, and whose data end at once."""
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b""))


def huge_npz(path, name, shape, dtype):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w") as f:
        f.writestr(f"{name}.npy", header.getvalue() + bytes(100))


def huge_mat(path, name):
    """SVHN's layout, one dimension of `name` in its header raised to a billion or more."""
    content = {"X": np.zeros((8, 8, 3, 20), np.uint8), "y": np.ones((20, 1), np.uint8)}
    scipy.io.savemat(path, content)
    at = struct.pack("<4i", 8, 8, 3, 20) if name == "X" else struct.pack("<2i", 20, 1)
    whole = path.read_bytes()
    assert whole.count(at) == 1
    path.write_bytes(whole.replace(at, at[:-4] + struct.pack("<i", 2**31 - 1)))


@pytest.fixture
def little_memory():
    """Two gigabytes of address space more than now: what a header claims cannot be had."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as f:
        now = int(f.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**31, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_headers_that_claim_terabytes(tmp_path, little_memory):
    for split in ("images", "labels"):
        with h5py.File(tmp_path / "a.h5", "w") as f:
            f["train/images"] = np.zeros((20, 8, 8, 3), np.uint8)
            f["train/labels"] = np.zeros(20, np.uint8)
            del f[f"train/{split}"]
            f.create_dataset(f"train/{split}", (10**9, 32, 32, 3), np.uint8, chunks=(1, 32, 32, 3))
        refused(tmp_path / "a.h5", "claims")
    for name, shape, dtype in (("images", (10**9, 32, 32, 3), "|u1"), ("labels", (10**12,), "<f8"),
                               ("other", (10**12,), "<f8"), ("images", (2**62, 2**62), "|u1")):
        huge_npz(tmp_path / "a.npz", name, shape, dtype)
        refused(tmp_path / "a.npz", "claims")
    for name in ("X", "y"):
        huge_mat(tmp_path / "train_32x32.mat", name)
        refused(tmp_path, "claims", "train_32x32.mat")
    (tmp_path / "pictures").mkdir()
    for size in ((2**20, 2**20), (12_000, 12_000), (2**31 - 1, 2**31 - 1)):
        huge_png(tmp_path / "pictures" / "a.png", *size)
        refused(tmp_path / "pictures", "a.png")


def test_a_pickle_is_never_loaded(tmp_path):
    """Not one of the arrays, whatever its name; reading it would make a file."""
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "trapped"), "w")

    for names in ("train", "labels", "other"):
        arrays = {"train": np.zeros((20, 8, 8), np.uint8), names: np.array([Trap()], object)}
        np.savez(tmp_path / "a.npz", **arrays)
        refused(tmp_path / "a.npz", "pickled objects, which are never loaded")
    (tmp_path / "a.npz").write_bytes(pickle.dumps(Trap()))
    refused(tmp_path / "a.npz", "cannot be read")
    np.save(tmp_path / "b.npy", np.array([Trap()], object))
    (tmp_path / "b.npy").rename(tmp_path / "a.npz")
    refused(tmp_path / "a.npz", "cannot be read")
    assert not (tmp_path / "trapped").exists()


def test_files_of_another_kind(tmp_path):
    (tmp_path / "a.npz").write_text("no array")
    (tmp_path / "a.txt").write_text("no array")
    (tmp_path / "empty").mkdir()
    for name in ("a.h5", "train_32x32.mat"):
        (tmp_path / "kind").mkdir(exist_ok=True)
        (tmp_path / "kind" / name).write_bytes(b"%PDF-1.7 nothing of the kind" * 100)
    refused(tmp_path / "kind" / "a.h5", "cannot be read")
    refused(tmp_path / "kind", "train_32x32.mat", "cannot be read")
    scipy.io.savemat(tmp_path / "kind" / "train_32x32.mat", {"Z": np.zeros(3)})
    refused(tmp_path / "kind", "it holds Z, not X and y")
    refused(tmp_path / "a.npz", "cannot be read")
    refused(tmp_path / "a.txt", "a folder, an .npz or an .h5")
    refused(tmp_path / "empty", "neither")


def test_an_altered_h5_is_noticed(tmp_path, images):
    source, _ = write("h5", tmp_path, images, np.arange(40))
    with h5py.File(source, "a") as f:
        f["train/images"][3, 2, 1, 0] ^= 1
    refused(source, "sha256")
