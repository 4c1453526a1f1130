"""Images to train on, from three sources, and one HDF5 layout to keep them in (data/README.md)."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from minivae.errors import UserError
from minivae.files import cannot_write, replacing
from minivae.images import readers
from minivae.images.readers import Split
from minivae.images.stream import Streamed, chunks, sha256

SVHN_URL = "http://ufldl.stanford.edu/housenumbers/"
SVHN_MD5 = {"train": "e26dedcc434d2e4c54c9b2d4a06d8373", "test": "eb5a983be6a315427106f1b164d9cef3",
            "extra": "a93ce644f1a588dc4d68dda5feec44a7"}
TEST_IMAGES = 5000  # that losses are evaluated on, at most: as many as the reference takes


@dataclass
class Dataset:
    """name can name a folder; notes are lines that the user should read."""

    name: str
    train: Split
    test: Split
    notes: list


def load(source, folder):
    """The Dataset of "housenumbers", "svhn", "svhn-extra" (which are kept in `folder`) or a path.

    UserError for whatever is missing, damaged or of the wrong kind.
    """
    if source == "housenumbers":
        return _dataset(source, _housenumbers(folder))
    if source in ("svhn", "svhn-extra"):
        train = _download(folder, "extra" if source == "svhn-extra" else "train")
        return _dataset(source, readers.mat([train, _download(folder, "test")]))
    path = Path(source)
    try:
        path.stat()
    except OSError as e:
        raise UserError(f"--data {source}: {e.strerror}; give a path that can be read, or "
                        "housenumbers, svhn or svhn-extra") from e
    return _dataset(path.stem or "data", readers.read(path))


def test_subset(images):
    """Those that test losses are of: the first TEST_IMAGES of RandomState(0).permutation(N)."""
    return images[np.random.RandomState(0).permutation(len(images))[:TEST_IMAGES]]


def unseen(images, train):
    """The rows of `images` that are not among `train`: a density says nothing of training images.

    UserError if there are none.
    """
    digests = list(_hashes(images))
    seen = set(digests).intersection(_hashes(train))
    rows = [row for row, digest in enumerate(digests) if digest not in seen]
    if not rows:
        raise UserError("every test image occurs in the training set, so that none can tell what "
                        "new images would get; give other test images")
    return rows


def _hashes(images):
    """The sha256 of each image; the images need not fit in memory."""
    for chunk in chunks(images):
        for image in chunk:
            yield hashlib.sha256(image).digest()


def write_hdf5(path, source, splits):
    """Write splits, (name, images, labels or None) for each, in the layout of data/README.md.

    They are taken one by one, once the file is open. UserError if it cannot be written; what was at
    `path` is then untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise cannot_write(path.parent, e) from e
    with replacing(path) as beside, open(beside, "w+b") as file, h5py.File(file, "w") as f:
        for name, images, labels in splits:
            group = f.create_group(name)
            group["images"] = images
            if labels is not None:
                group["labels"] = labels
            group.attrs.update(source=source, split=name, sha256=sha256(images))


def _housenumbers(folder):
    path = folder / "housenumbers.h5"
    if not path.exists():
        from minivae.images import housenumbers

        print(f"making the housenumbers images, once, into {path}")
        made = ((split, *housenumbers.make(split)) for split in housenumbers.COUNTS)
        write_hdf5(path, "minivae.housenumbers, seed 0", made)
    try:
        return readers.hdf5(path)
    except UserError as e:
        raise UserError(f"{e}; if you delete {path.name}, it is made again") from e


def _download(folder, split):
    """The path of SVHN's file of a split, which is downloaded unless it is there."""
    import pooch

    pooch.get_logger().setLevel("WARNING")  # the progress bar is enough
    name = f"{split}_32x32.mat"
    url = SVHN_URL + name
    try:
        return Path(pooch.retrieve(url, f"md5:{SVHN_MD5[split]}", name, folder, progressbar=True))
    except (OSError, ValueError) as e:  # no network; another checksum
        raise UserError(f"cannot download {url} ({type(e).__name__}); put it at {folder / name} by "
                        "other means") from e


def _dataset(name, splits):
    """The Dataset of a reader's Splits, checked; without a test split a tenth is held out."""
    notes = []
    splits = [_checked(split) for split in splits]
    train = splits[0]
    if len(splits) == 1:
        splits = _held_out(train)
        notes.append(f"no test split: {len(splits[1].images)} of {len(train.images)} images, drawn "
                     "at random, are held out for testing")
    shape, test_shape = (split.images.shape[1:] for split in splits)
    if shape != test_shape:
        raise UserError(f"{train.path}: training images are {shape} and test images {test_shape}; "
                        "give both the same size and channels")
    if len(splits[0].images) < 2:
        raise UserError(f"{train.path} holds 1 training image; batch statistics need at least 2")
    if shape[:2] == (28, 28):
        notes.append("28x28 images are padded with 2 pixels of zeros on each side, to 32x32")
        for split in splits:
            split.images = np.pad(split.images, ((0, 0), (2, 2), (2, 2), (0, 0)))
            split.sha256 = None
    for split in splits:
        split.sha256 = split.sha256 or sha256(split.images)
    return Dataset(name, *splits, notes)


def _held_out(split):
    """[train, test]: a random tenth of the images, the same each time, becomes the test images."""
    count = len(split.images)
    if isinstance(split.images, Streamed):
        raise UserError(f"{split.path} holds no test images, and too many images to hold some out; "
                        "add a group named test")
    if count < 10:
        raise UserError(f"{split.path} holds {count} images; at least 10 are needed")
    order = np.random.RandomState(0).permutation(count)
    return [_rows(split, order[count // 10 :]), _rows(split, order[: count // 10])]


def _rows(split, rows):
    labels = None if split.labels is None else split.labels[rows]
    return Split(split.images[rows], labels, path=split.path)


def _checked(split):
    """The Split with images (N, H, W, C) uint8, of a size that a model takes, and labels int64."""
    try:
        images = _as_images(split.images)
        labels = None if split.labels is None else _as_integers(split.labels, len(images))
    except UserError as e:
        raise UserError(f"{split.path}: {e}") from e
    unchanged = images is split.images
    return Split(images, labels, split.sha256 if unchanged else None, split.path)


def _as_images(images):
    if len(images.shape) == 3 and isinstance(images, np.ndarray):
        images = images[..., None]
    if len(images.shape) != 4 or images.shape[3] not in (1, 3):
        raise UserError(f"images of shape {images.shape}; save them as (N, H, W), (N, H, W, 1) or "
                        "(N, H, W, 3)")
    count, height, width, _ = images.shape
    if not count:
        raise UserError("it holds no images; give a file that does")
    if (height, width) != (28, 28) and (height % 8 or width % 8 or not height or not width):
        raise UserError(f"images of {height}x{width} pixels; scale them so that 8 divides both")
    return images if isinstance(images, Streamed) else np.ascontiguousarray(_as_uint8(images))


def _as_integers(labels, count):
    if labels.shape != (count,):
        raise UserError(f"labels of shape {labels.shape} for {count} images; save one for each")
    if labels.dtype.kind not in "uif" or not np.array_equal(labels, np.trunc(labels)):
        raise UserError(f"labels of type {labels.dtype}, not whole numbers; save them as integers")
    return labels.astype(np.int64)


def _as_uint8(images):
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in "uif":
        raise UserError(f"images of type {images.dtype}; save them as uint8, or floats from 0 to 1")
    low = images.min()
    high = images.max()
    top = 1 if images.dtype.kind == "f" else 255
    if not 0 <= low <= high <= top:  # false of NaN as well
        raise UserError(f"{images.dtype} pixels from {low} to {high}; save them from 0 to {top}")
    scale = 255 / top
    return np.concatenate([np.round(chunk * scale).astype(np.uint8) for chunk in chunks(images)])
