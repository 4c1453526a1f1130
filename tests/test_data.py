"""What data.load gives for each source, and the one line it gives for everything else."""

import contextlib
import hashlib
import http.server
import io
import os
import pickle
import resource
import struct
import tempfile
import threading
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

from minivae.errors import UserError
from minivae.images import data, mat, stream


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
        data.write_hdf5(file, "test", [("train", images, labels), ("test", images, labels)])
    return file, file


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("kind", ["mat", "npz", "h5"])
def test_every_kind_reads_back(tmp_path, images, kind, order):
    images = np.array(images, order=order)
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
        refused(tmp_path, f"{tmp_path}: 1 of 12 image files cannot be read: {file.name} (")
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
    """Whatever the order on the disk, the images are taken in the order of their paths."""
    pictures = rng.integers(0, 256, (20, 16, 8), np.uint8)
    (tmp_path / "1").mkdir()
    for i in rng.permutation(20):
        Image.fromarray(pictures[i]).save(tmp_path / f"{i // 10}{'/' if i >= 10 else ''}{i:02}.png")
    (tmp_path / "notes.txt").write_text("no image")
    found = data.load(str(tmp_path), None)
    order = np.random.RandomState(0).permutation(20)
    np.testing.assert_array_equal(found.test.images, pictures[order[:2], ..., None])
    np.testing.assert_array_equal(found.train.images, pictures[order[2:], ..., None])
    assert "2 of 20 images, drawn at random, are held out" in found.notes[0]
    assert found.train.labels is None
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "30.png")
    refused(tmp_path, "several sizes, such as 8x8 and 16x8; train with --size 8 to have them")


def test_labels_stay_with_their_images(tmp_path):
    values = np.arange(40, dtype=np.uint8)
    images = np.broadcast_to(values[:, None, None], (40, 8, 8))
    np.savez(tmp_path / "a.npz", images=images, labels=values)
    found = data.load(str(tmp_path / "a.npz"), None)
    for split in (found.train, found.test):
        np.testing.assert_array_equal(split.labels, split.images[:, 0, 0, 0])
    assert sorted([*found.train.labels, *found.test.labels]) == list(range(40))
    assert sorted(found.test.labels) != list(range(4))  # drawn from all of them, not the first


def test_the_names_of_arrays_in_their_order(tmp_path, images):
    """An .npz may hold other arrays besides, and what it calls train is taken before what it calls images."""
    np.savez(tmp_path / "a.npz", images=images[:10], x_train=images[:20], train=images, x_test=images[5:8],
             y_test=np.arange(3), labels=np.arange(40), other=np.zeros(3))
    found = data.load(str(tmp_path / "a.npz"), None)
    np.testing.assert_array_equal(found.train.images, images)
    np.testing.assert_array_equal(found.train.labels, np.arange(40))
    np.testing.assert_array_equal(found.test.images, images[5:8])
    np.testing.assert_array_equal(found.test.labels, np.arange(3))
    np.savez(tmp_path / "a.npz", x=images, other=images)
    refused(tmp_path / "a.npz", "it holds x, other; name its images")


def test_28x28_is_padded(tmp_path, rng):
    grey = rng.integers(1, 256, (30, 28, 28), np.uint8)
    np.savez(tmp_path / "a.npz", images=grey)
    found = data.load(str(tmp_path / "a.npz"), None)
    assert found.train.images.shape == (27, 32, 32, 1)
    assert not found.train.images[:, :2].any() and found.train.images[:, 2:-2, 2:-2].all()
    assert any("padded" in note for note in found.notes)
    rows = np.concatenate([found.train.images, found.test.images])[:, 2:-2, 2:-2, 0].reshape(30, -1)
    np.testing.assert_array_equal(np.unique(rows, axis=0), np.unique(grey.reshape(30, -1), axis=0))
    for shape in ((30, 28, 32), (30, 32, 28)):
        np.savez(tmp_path / "a.npz", images=np.zeros(shape, np.uint8))
        refused(tmp_path / "a.npz", f"{shape[1]}x{shape[2]} pixels", "8 must divide both; train with --size 24")


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int16, np.uint32, np.int64])
def test_other_types_give_back_each_level(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(stream, "CHUNK_BYTES", 1000)  # several chunks
    levels = np.tile(np.arange(256, dtype=np.uint8), 10).reshape(10, 16, 16)
    saved = levels.astype(kind) / kind(255) if np.issubdtype(kind, np.floating) else levels.astype(kind)
    np.savez(tmp_path / "a.npz", train=saved, test=saved)
    found = data.load(str(tmp_path / "a.npz"), None)
    assert saved.dtype == kind
    np.testing.assert_array_equal(found.train.images, levels[..., None])


def test_floats_become_the_nearest_level(tmp_path, rng):
    levels = rng.integers(1, 255, (20, 8, 8))
    np.savez(tmp_path / "a.npz", train=(levels + rng.uniform(-0.49, 0.49, levels.shape)) / 255, test=levels)
    np.testing.assert_array_equal(data.load(str(tmp_path / "a.npz"), None).train.images, levels[..., None])


@pytest.mark.parametrize("change", [
    lambda x: x, lambda x: x[..., 0], lambda x: x / 255, lambda x: x[:, :8, :8].repeat(4, 1).repeat(4, 2)[:, :28, :28],
])
@pytest.mark.parametrize("splits", [("train", "test"), ("train",)])
def test_sha256_is_that_of_the_images_given(tmp_path, images, change, splits, monkeypatch):
    """Also when they were converted, padded or held out; it is computed once for each split, if that can be."""
    changed = change(images)
    data.write_hdf5(tmp_path / "a.h5", "test", [(split, changed, None) for split in splits])
    hashed = []
    monkeypatch.setattr(stream, "chunks", lambda x, chunks=stream.chunks: hashed.append(x.shape) or chunks(x))
    found = data.load(str(tmp_path / "a.h5"), None)
    if changed is images and "test" in splits:
        assert hashed == [images.shape] * 2
    for split in (found.train, found.test):
        expected = hashlib.sha256(repr(split.images.shape).encode() + split.images.tobytes()).hexdigest()
        assert split.sha256 == expected


def test_npz_images_are_hashed_once(tmp_path, images, monkeypatch):
    source, _ = write("npz", tmp_path, images, np.arange(40))
    hashed = []
    monkeypatch.setattr(stream, "chunks", lambda x, chunks=stream.chunks: hashed.append(x.shape) or chunks(x))
    data.load(str(source), None)
    assert hashed == [images.shape] * 2


@pytest.mark.parametrize("content, word", [
    (np.zeros((20, 12, 8, 3), np.uint8), "8 must divide both; train with --size 8 "),
    (np.zeros((20, 8, 8, 4), np.uint8), "(N, H, W, 3)"),
    (np.zeros((20, 8), np.uint8), "(N, H, W"),
    (np.zeros((0, 8, 8, 3), np.uint8), "no images"),
    (np.zeros((1, 8, 8, 3), np.uint8), "at least 10"),
    (np.full((20, 8, 8, 3), np.nan), "from nan to nan"),
    (np.full((20, 8, 8, 3), 256.0), "from 0 to 1"),
    (np.full((20, 8, 8, 3), -1.5), "from 0 to 1"),
    (np.zeros((64, 64, 3), np.uint8), "(N, H, W"),
    (np.full((20, 8, 8, 3), 300), "from 0 to 255"),
    (np.full((20, 8, 8, 3), "a"), "uint8"),
    (np.full((20, 8, 8, 3), {}, object), "Object arrays"),
])
def test_wrong_arrays(tmp_path, content, word):
    np.savez(tmp_path / "a.npz", images=content)
    refused(tmp_path / "a.npz", word, "a.npz")


@pytest.mark.parametrize("labels, word", [(np.zeros(19), "(19,) for 20 images"), (np.float64(3), "() for 20 images")])
def test_wrong_labels(tmp_path, labels, word):
    np.savez(tmp_path / "a.npz", images=np.zeros((20, 8, 8), np.uint8), labels=labels)
    refused(tmp_path / "a.npz", "labels", word)


@pytest.mark.parametrize("kind", ["mat", "h5"])
@pytest.mark.parametrize("change, word", [
    (lambda x: x[..., :2], "(N, H, W, 3)"), (lambda x: x[:0], "no images"), (lambda x: x[:, :7], "8 must divide"),
    (lambda x: np.where(x > 300, x, np.nan), "nan"), (lambda x: x * np.inf, "nan"), (lambda x: x[:1], "least 2"),
    (lambda x: x * 1.01, "from 0 to 1"), (lambda x: x.astype(np.int16) - 300, "from 0 to 255"),
])
def test_wrong_arrays_in_every_kind_of_file(tmp_path, images, kind, change, word):
    with np.errstate(invalid="ignore"):
        changed = change(images)
    source, file = write(kind, tmp_path, changed, np.zeros(len(changed), int))
    refused(source, word, file.name)


def test_few_images(tmp_path):
    for count in range(3):
        np.savez(tmp_path / "a.npz", images=np.zeros((count, 8, 8), np.uint8))
        refused(tmp_path / "a.npz", "a.npz", "at least 10" if count else "no images")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "only.png")
    refused(tmp_path, "holds 1 images; at least 10")


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


def test_svhn_extra_trains_on_the_extra_split(tmp_path, rng, monkeypatch):
    """Files of the right md5 are not downloaded again."""
    monkeypatch.setattr(data, "SVHN_URL", "http://127.0.0.1:9/")
    saved = {}
    for split in ("train", "test", "extra"):
        path = tmp_path / f"{split}_32x32.mat"
        saved[split] = rng.integers(0, 256, (32, 32, 3, 12), np.uint8)
        scipy.io.savemat(path, {"X": saved[split], "y": np.arange(1, 13)[:, None] % 10 + 1})
        monkeypatch.setitem(data.SVHN_MD5, split, hashlib.md5(path.read_bytes()).hexdigest())
    for source, train in (("svhn", "train"), ("svhn-extra", "extra")):
        found = data.load(source, tmp_path)
        np.testing.assert_array_equal(found.train.images, saved[train].transpose(3, 0, 1, 2))
        np.testing.assert_array_equal(found.test.images, saved["test"].transpose(3, 0, 1, 2))
        np.testing.assert_array_equal(found.train.labels, np.array([2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3]))
        assert found.name == source


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
    with pytest.raises(UserError, match="cannot download .*train_32x32.mat is another file, by its md5; put"):
        data.load("svhn", tmp_path)


def test_mat_images_are_turned_in_place(rng):
    x = np.asfortranarray(rng.integers(0, 256, (8, 16, 3, 2500), np.uint8))
    expected = x.transpose(3, 0, 1, 2).copy()
    turned = mat._images_first(x)
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
    with h5py.File(tmp_path / "a.h5", "w") as f:  # not empty: 3,000 bytes for each that is stored
        f.create_dataset("train/images", (10**5, 32, 32, 3), np.uint8, chunks=(33, 32, 32, 3))[0] = 1
    refused(tmp_path / "a.h5", "claims 307,200,000 bytes")
    for name, shape, dtype in (("images", (10**9, 32, 32, 3), "|u1"), ("labels", (10**12,), "<f8"),
                               ("other", (10**12,), "<f8"), ("images", (2**62, 2**62), "|u1")):
        huge_npz(tmp_path / "a.npz", name, shape, dtype)
        refused(tmp_path / "a.npz", "a.npz")
    for name in ("X", "y"):
        huge_mat(tmp_path / "train_32x32.mat", name)
        refused(tmp_path, "train_32x32.mat")
    (tmp_path / "pictures").mkdir()
    for size in ((2**20, 2**20), (12_000, 12_000), (2**31 - 1, 2**31 - 1)):
        huge_png(tmp_path / "pictures" / "a.png", *size)
        refused(tmp_path / "pictures", "a.png")


def test_images_packed_very_tightly_are_read(tmp_path):
    """As tightly as deflate can: one colour, in chunks of megabytes."""
    with h5py.File(tmp_path / "a.h5", "w") as f:
        for split, count in (("train", 2**26 // 3072 + 1), ("test", 2)):
            f.create_dataset(f"{split}/images", data=np.zeros((count, 32, 32, 3), np.uint8), compression=9,
                             chunks=(min(count, 2000), 32, 32, 3))
        stored = f["train/images"].id.get_storage_size()
    assert 900 * stored < 2**26
    assert len(data.load(str(tmp_path / "a.h5"), None).train.images) == 2**26 // 3072 + 1


def test_a_pickle_is_never_loaded(tmp_path, images):
    """Not one of the arrays, whatever its name; reading it would make a file."""
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "trapped"), "w")

    np.savez(tmp_path / "a.npz", train=np.array([Trap()], object))
    refused(tmp_path / "a.npz", "Object arrays cannot be loaded")
    for name in ("other", "labels"):
        np.savez(tmp_path / "a.npz", train=images, **{name: np.array([Trap()], object)})
        found = data.load(str(tmp_path / "a.npz"), None)
        assert any("pickle is never loaded" in note for note in found.notes) == (name == "labels")
        assert found.train.labels is None
    for name, word in (("a.npy", "a.npy"), ("a.pkl", "a kind that is not read"), ("data_batch_1", "CIFAR's pickles")):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        refused(tmp_path / name, word)
    (tmp_path / "a.npz").write_bytes(pickle.dumps(Trap()))
    refused(tmp_path / "a.npz", "cannot be read")
    np.save(tmp_path / "b.npy", np.array([Trap()], object))
    (tmp_path / "b.npy").rename(tmp_path / "a.npz")
    refused(tmp_path / "a.npz", "cannot be read (File is not a zip file)")
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
    refused(tmp_path / "a.txt", "give a folder, a .zip or .tar of image files, an .npz")
    refused(tmp_path / "empty", "no image files")
    (tmp_path / "empty" / "test_32x32.mat").write_bytes(b"")
    refused(tmp_path / "empty", "train_32x32.mat cannot be read (No such file")
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f["a"] = f["b"] = np.zeros((20, 8, 8, 3), np.uint8)
    refused(tmp_path / "a.h5", "a.h5: it holds a, b; name its images train and test")
    refused(tmp_path / "gone", "No such file", "housenumbers, svhn or svhn-extra")


@pytest.fixture
def another_user():
    """A folder that everybody may read, while we are not root."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        if os.geteuid() != 0:
            yield Path(name)
            return
        os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(0)


def test_what_may_not_be_read_says_so(another_user, images):
    """An image, a folder of images inside another, the folder itself, a file in it, an .npz, an .h5."""
    inner = another_user / "outer" / "inner"
    inner.mkdir(parents=True)
    for i in range(12):
        Image.fromarray(images[i]).save(inner / f"{i:02}.png")
    assert len(data.load(str(inner.parent), None).train.images) == 11
    for path in (inner / "03.png", inner, inner.parent):
        mode = path.stat().st_mode
        path.chmod(0)
        what = "inner/03.png" if path.suffix else f"{path} cannot be read"
        refused(inner.parent, what, "(Permission denied)")
        if path.suffix == "":
            refused(path / "a.npz", "Permission denied")
        path.chmod(mode)
    for kind in ("npz", "h5"):
        source, file = write(kind, another_user, images, None if kind == "h5" else np.arange(40))
        file.chmod(0)
        refused(source, f"{file} cannot be read (Permission denied)")


def test_an_altered_h5_is_noticed(tmp_path, images):
    source, _ = write("h5", tmp_path, images, np.arange(40))
    with h5py.File(source, "a") as f:
        f["train/images"][3, 2, 1, 0] ^= 1
    refused(source, "sha256")
