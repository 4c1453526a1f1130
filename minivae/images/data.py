"""Images to train on: three sources, one HDF5 layout (data/README.md), every mistake told in one line."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minivae.errors import UserError
from minivae.files import cannot_write, replacing
from minivae.images import readers
from minivae.images.stream import Streamed, sha256

SVHN_URL = "http://ufldl.stanford.edu/housenumbers/"
SVHN_MD5 = {"train": "e26dedcc434d2e4c54c9b2d4a06d8373", "test": "eb5a983be6a315427106f1b164d9cef3",
            "extra": "a93ce644f1a588dc4d68dda5feec44a7"}
PART = 1000  # images converted at a time


@dataclass
class Split:
    """images (N, H, W, C) uint8; labels (N,) or None; sha256 of the images' shape and bytes.

    Of images, only this is used: shape, len, and images[slice or array of rows], which is an array; so they may be
    Streamed as well.
    """

    images: np.ndarray | Streamed
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
        return _dataset(source, *readers.hdf5(_housenumbers(folder)))
    if source in ("svhn", "svhn-extra"):
        return _dataset(source, *readers.mat(_download(folder, "extra" if source == "svhn-extra" else "train")))
    path = Path(source)
    name = path.stem or "data"
    if path.is_dir():
        if any(path.glob("*_32x32.mat")):
            return _dataset(name, *readers.mat([path / "train_32x32.mat", path / "test_32x32.mat"]))
        return _dataset(name, *readers.folder(path))
    if not path.exists():
        raise UserError(f"--data {source} does not exist; give housenumbers, svhn, svhn-extra or an existing path")
    kinds = {".npz": readers.npz, ".h5": readers.hdf5, ".hdf5": readers.hdf5}
    if path.suffix not in kinds:
        raise UserError(f"{path} is not a kind of file that can be read; give a folder, an .npz or an .h5")
    return _dataset(name, *kinds[path.suffix](path))


def write_hdf5(path, source, splits):
    """Write {"train": (images, labels), "test": ...} in the layout of data/README.md, beside first, then renamed."""
    import h5py

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise cannot_write(path.parent, e) from e
    with replacing(path) as beside, open(beside, "w+b") as file, h5py.File(file, "w") as f:
        for split, (images, labels) in splits.items():
            group = f.create_group(split)
            group["images"] = images
            if labels is not None:
                group["labels"] = labels
            group.attrs.update(source=source, split=split, sha256=sha256(images))


def _housenumbers(folder):
    path = folder / "housenumbers.h5"
    if not path.exists():
        from tqdm import tqdm

        from minivae.images import housenumbers

        print(f"making the housenumbers images, once, into {path}")
        write_hdf5(path, "minivae.housenumbers, seed 0", {
            split: housenumbers.make(split, progress=lambda parts, split=split: tqdm(parts, split, disable=None))
            for split in housenumbers.COUNTS})
    return path


def _download(folder, train):
    import pooch

    pooch.get_logger().setLevel("WARNING")  # the progress bar is enough
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


def _dataset(name, train, test=None):
    """Check (images, labels, path) of each split; hold out a tenth if there is no test split."""
    notes = []
    splits = [_checked(*split, notes) for split in (train, test) if split]
    if test is None:
        images, labels = splits[0]
        if isinstance(images, Streamed):
            raise UserError(f"{train[2]} holds no test images, and too many to hold some out; add a group named test")
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
    train, test = (Split(images, labels, sha256(images)) for images, labels in splits)
    return Dataset(name, train, test, list(dict.fromkeys(notes)))


def _checked(images, labels, path, notes):
    """The images as (N, H, W, C) uint8 with H and W divisible by 8, and the labels."""
    if isinstance(images, np.ndarray) and images.ndim == 3:
        images = images[..., None]
    if len(images.shape) != 4 or images.shape[3] not in (1, 3):
        raise UserError(f"{path}: images of shape {images.shape}; save them as (N, H, W), (N, H, W, 1) or (N, H, W, 3)")
    if len(images) == 0:
        raise UserError(f"{path} holds no images; give a file that does")
    if labels is not None:
        labels = _as_integers(labels, len(images), path)
    height, width = images.shape[1:3]
    padded = height == width == 28
    if not padded and (height % 8 or width % 8 or not height or not width):
        raise UserError(f"{path}: images of {height}x{width} pixels; crop or scale them so that 8 divides both")
    if isinstance(images, Streamed):
        return images, labels
    if images.dtype != np.uint8:
        images = _as_uint8(images, path)
    if padded:
        images = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
        notes.append("28x28 images are padded with 2 pixels of zeros on each side, to 32x32")
    return np.ascontiguousarray(images), labels


def _as_integers(labels, count, path):
    if labels.shape != (count,):
        raise UserError(f"{path}: labels of shape {labels.shape} for {count} images; save one label per image")
    if labels.dtype.kind not in "uif" or not np.array_equal(labels, np.trunc(labels)):
        raise UserError(f"{path}: labels of type {labels.dtype} that are no whole numbers; save them as integers")
    return labels.astype(np.int64)


def _as_uint8(images, path):
    kind = images.dtype.kind
    if kind not in "uif":
        raise UserError(f"{path}: images of type {images.dtype}; save them as uint8, or as floats from 0 to 1")
    low, high = images.min(), images.max()
    top = 1 if kind == "f" else 255
    if not (np.isfinite(low) and np.isfinite(high) and 0 <= low and high <= top):
        raise UserError(f"{path}: {images.dtype} pixels from {low} to {high}; they must be finite and from 0 to {top}")
    pixels = np.empty(images.shape, np.uint8)
    for i in range(0, len(images), PART):  # no second copy of them all
        pixels[i : i + PART] = np.round(images[i : i + PART] * 255) if kind == "f" else images[i : i + PART]
    return pixels
