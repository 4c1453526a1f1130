"""Images to train on: three sources, one HDF5 layout (data/README.md), every mistake told in one line."""

import contextlib
import hashlib
import os
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minivae.errors import UserError

SVHN_URL = "http://ufldl.stanford.edu/housenumbers/"
SVHN_MD5 = {"train": "e26dedcc434d2e4c54c9b2d4a06d8373", "test": "eb5a983be6a315427106f1b164d9cef3",
            "extra": "a93ce644f1a588dc4d68dda5feec44a7"}
NAMES = {  # arrays of an .npz: (images, labels) in the order tried
    "train": (("train", "train_images", "x_train", "images"), ("train_labels", "y_train", "labels")),
    "test": (("test", "test_images", "x_test"), ("test_labels", "y_test")),
}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
LARGEST_RATIO = 1100  # deflate cannot pack tighter: a header that claims more than this times its file lies


@dataclass
class Split:
    """images (N, H, W, C) uint8; labels (N,) or None; sha256 of the images' shape and bytes."""

    images: np.ndarray
    labels: np.ndarray | None
    sha256: str


@dataclass
class Dataset:
    """name fits a directory's name; notes are lines that the user should read."""

    name: str
    train: Split
    test: Split
    notes: list


def load(source, folder):
    """The Dataset of "housenumbers", "svhn", "svhn-extra" or a path; the named ones are kept in `folder`.

    UserError for whatever is missing, damaged or of the wrong kind.
    """
    if source == "housenumbers":
        return _hdf5(_housenumbers(folder), source)
    if source in ("svhn", "svhn-extra"):
        return _mat(_download(folder, "extra" if source == "svhn-extra" else "train"), source)
    path = Path(source)
    name = path.stem or "data"
    if path.is_dir():
        if any(path.glob("*_32x32.mat")):
            return _mat([path / "train_32x32.mat", path / "test_32x32.mat"], name)
        return _folder(path, name)
    if not path.exists():
        raise UserError(f"--data {source} does not exist; give housenumbers, svhn, svhn-extra or an existing path")
    readers = {".npz": _npz, ".h5": _hdf5, ".hdf5": _hdf5}
    if path.suffix not in readers:
        raise UserError(f"{path} is not a kind of file that can be read; give a folder, an .npz or an .h5")
    return readers[path.suffix](path, name)


def write_hdf5(path, source, splits):
    """Write {"train": (images, labels), "test": ...} in the layout of data/README.md, beside first, then renamed."""
    import h5py

    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(beside, "w") as f:
            for split, (images, labels) in splits.items():
                group = f.create_group(split)
                group["images"], group["labels"] = images, labels
                group.attrs.update(source=source, split=split, sha256=_sha256(images))
        os.replace(beside, path)
    except OSError as e:
        beside.unlink(missing_ok=True)
        raise UserError(f"cannot write {path} ({e}); free some space or make the folder writable") from e


def _housenumbers(folder):
    path = folder / "housenumbers.h5"
    if not path.exists():
        from tqdm import tqdm

        from minivae import housenumbers

        print(f"making the housenumbers images, once, into {path}")
        write_hdf5(path, "minivae.housenumbers, seed 0", {
            split: housenumbers.make(split, progress=lambda parts, split=split: tqdm(parts, split, disable=None))
            for split in housenumbers.COUNTS})
    return path


def _download(folder, train):
    import pooch

    paths = []
    for split in (train, "test"):
        name = f"{split}_32x32.mat"
        try:
            path = pooch.retrieve(SVHN_URL + name, f"md5:{SVHN_MD5[split]}", name, folder, progressbar=True)
        except (OSError, ValueError) as e:  # no network; another checksum
            raise UserError(f"cannot download {SVHN_URL}{name} ({type(e).__name__}); get it by other means and put it "
                            f"at {folder / name}") from e
        paths.append(Path(path))
    return paths


def _mat(paths, name):
    import scipy.io

    splits = []
    for path in paths:
        with _reading(path):
            with open(path, "rb") as f:  # first: scipy would look for other names
                variables = {v: shape for v, shape, _ in scipy.io.whosmat(f)}
                _check_claim(path, variables["X"], 1)
                content = scipy.io.loadmat(f)
            images, labels = content["X"], content["y"].ravel() % 10  # SVHN calls the digit 0 "10"
            if images.ndim != 4:
                raise ValueError(f"X has shape {images.shape}, not (H, W, C, N)")
        splits.append((np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels, path))
    return _dataset(name, *splits)


def _npz(path, name):
    with _reading(path):
        sizes = _npz_sizes(path)
        with np.load(path, allow_pickle=False) as f:
            splits = []
            for images, labels in NAMES.values():
                found = next((n for n in images if n in f), None)
                if found:
                    label = next((n for n in labels if n in f), None)
                    splits.append((f[found], f[label] if label else None, path))
    if not splits:
        raise UserError(f"{path} holds {', '.join(sizes) or 'nothing'}; name its images train and test, or images")
    return _dataset(name, *splits)


def _npz_sizes(path):
    """{array name: bytes}, each header held against what the file holds, before anything is allocated."""
    sizes = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            with archive.open(info) as f:
                version = np.lib.format.read_magic(f)
                lib = np.lib.format
                shape, _, dtype = (lib.read_array_header_1_0 if version == (1, 0) else lib.read_array_header_2_0)(f)
            if dtype.hasobject:
                raise ValueError(f"{info.filename} holds pickled objects, which are never loaded")
            _check_claim(path, shape, dtype.itemsize)
            sizes[info.filename.removesuffix(".npy")] = info.file_size
    return sizes


def _hdf5(path, name):
    import h5py

    splits = []
    with _reading(path), h5py.File(path, "r") as f:
        for split in ("train", "test"):
            if split in f:
                group = f[split]
                images, labels = group["images"], group.get("labels")
                _check_claim(path, images.shape, images.dtype.itemsize)
                if labels is not None:
                    _check_claim(path, labels.shape, labels.dtype.itemsize)
                images, labels = images[()], None if labels is None else labels[()]
                if "sha256" in group.attrs and group.attrs["sha256"] != _sha256(images):
                    raise ValueError(f"{split}/images does not match its sha256: the file was altered")
                splits.append((images, labels, path))
        if not splits:
            raise ValueError("it holds no group named train; see data/README.md")
    return _dataset(name, *splits)


def _folder(path, name):
    from PIL import Image

    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UserError(f"{path} holds neither train_32x32.mat nor image files; give a folder that does")
    images = None
    for i, file in enumerate(files):
        with _reading(file), Image.open(file) as image:
            grey = image.mode in ("1", "L", "LA", "I", "I;16", "F") if images is None else images.shape[3] == 1
            shape = image.height, image.width, 1 if grey else 3
            if images is None:
                images = np.empty((len(files), *shape), np.uint8)
            if shape != images.shape[1:]:
                raise ValueError(f"it is {image.width}x{image.height}, the first image "
                                 f"{images.shape[2]}x{images.shape[1]}: all must be of one size")
            images[i] = np.asarray(image.convert("L" if grey else "RGB")).reshape(shape)
    return _dataset(name, (images, None, path))


def _dataset(name, train, test=None):
    """Check (images, labels, path) of each split; hold out a tenth if there is no test split."""
    notes = []
    splits = [_checked(*split, notes) for split in (train, test) if split]
    if test is None:
        images, labels = splits[0]
        held = len(images) // 10
        if held == 0:
            raise UserError(f"{train[2]} holds {len(images)} images; at least 10 are needed, to hold one out")
        order = np.random.RandomState(0).permutation(len(images))
        splits = [(images[rows], None if labels is None else labels[rows]) for rows in (order[held:], order[:held])]
        notes.append(f"no test split: {held} of {len(images)} images, drawn at random, are held out for testing")
    if splits[0][0].shape[1:] != splits[1][0].shape[1:]:
        raise UserError(f"{train[2]}: training images are {splits[0][0].shape[1:]} and test images "
                        f"{splits[1][0].shape[1:]}; make them alike")
    if len(splits[0][0]) < 2:
        raise UserError(f"{train[2]} holds {len(splits[0][0])} training image; batch statistics need at least 2")
    train, test = (Split(images, labels, _sha256(images)) for images, labels in splits)
    return Dataset(name, train, test, list(dict.fromkeys(notes)))


def _checked(images, labels, path, notes):
    """The images as (N, H, W, C) uint8 with H and W divisible by 8, and the labels."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise UserError(f"{path}: images of shape {images.shape}; save them as (N, H, W), (N, H, W, 1) or (N, H, W, 3)")
    if len(images) == 0:
        raise UserError(f"{path} holds no images; give a file that does")
    if images.dtype != np.uint8:
        images = _as_uint8(images, path)
    if labels is not None and (labels.ndim != 1 or len(labels) != len(images)):
        raise UserError(f"{path}: labels of shape {labels.shape} for {len(images)} images; save one label per image")
    height, width = images.shape[1:3]
    if (height, width) == (28, 28):
        images = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
        notes.append("28x28 images are padded with 2 pixels of zeros on each side, to 32x32")
    elif height % 8 or width % 8 or not height or not width:
        raise UserError(f"{path}: images of {height}x{width} pixels; crop or scale them so that 8 divides both")
    return np.ascontiguousarray(images), labels


def _as_uint8(images, path):
    kind = images.dtype.kind
    if kind not in "uif":
        raise UserError(f"{path}: images of type {images.dtype}; save them as uint8, or as floats from 0 to 1")
    low, high = images.min(), images.max()
    top = 1 if kind == "f" else 255
    if not (np.isfinite(low) and np.isfinite(high) and 0 <= low and high <= top):
        raise UserError(f"{path}: {images.dtype} pixels from {low} to {high}; they must be finite and from 0 to {top}")
    return np.round(images * 255).astype(np.uint8) if kind == "f" else images.astype(np.uint8)


@contextlib.contextmanager
def _reading(path):
    """Whatever the readers raise for a damaged file, as one line. They raise these, and no others, when fuzzed."""
    from scipy.io.matlab import MatReadError

    try:
        yield
    except FileNotFoundError as e:
        raise UserError(f"{path} is missing; put it there or give another --data") from e
    except (OSError, ValueError, KeyError, TypeError, EOFError, IndexError, OverflowError, MemoryError, RuntimeError,
            AttributeError, SyntaxError, tokenize.TokenError, struct.error, zlib.error, zipfile.BadZipFile,
            MatReadError) as e:
        reason = " ".join(str(e).split())[:200] or type(e).__name__
        raise UserError(f"{path} cannot be read ({reason}); it may be damaged or of another kind") from e


def _check_claim(path, shape, itemsize):
    claim, size = itemsize * int(np.prod([int(n) for n in shape], dtype=object)), os.path.getsize(path)
    if claim > LARGEST_RATIO * size:
        raise ValueError(f"its header claims {claim:,} bytes, which a file of {size:,} cannot hold")


def _sha256(images):
    digest = hashlib.sha256(repr(images.shape).encode())
    digest.update(np.ascontiguousarray(images))
    return digest.hexdigest()
