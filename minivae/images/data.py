"""Images to train on, from three sources, and one HDF5 layout to keep them in (data/README.md)."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from minivae.errors import UserError, did_you_mean
from minivae.files import cannot_write, replacing
from minivae.images import SOURCES, arrays, mat, readers
from minivae.images.convert import convert
from minivae.images.split import Split
from minivae.images.stream import Streamed, chunks, sha256
from minivae.images.summary import summary, warnings

SVHN_URL = "http://ufldl.stanford.edu/housenumbers/"
SVHN_MD5 = {"train": "e26dedcc434d2e4c54c9b2d4a06d8373", "test": "eb5a983be6a315427106f1b164d9cef3",
            "extra": "a93ce644f1a588dc4d68dda5feec44a7"}
TEST_IMAGES = 5000  # that losses are evaluated on, at most: as many as the reference takes


@dataclass
class Dataset:
    """name can name a folder; notes are lines that the user should read; summary is one that says what was read."""

    name: str
    train: Split
    test: Split
    notes: list
    summary: str = ""


def load(source, folder, size=None, skip_damaged=False):
    """The Dataset of "housenumbers", "svhn", "svhn-extra" (which are kept in `folder`) or a path.

    size: the (H, W) to which images are cropped and scaled, None to take them as they are.
    skip_damaged: leave out image files that cannot be read. UserError for whatever is missing,
    damaged or of the wrong kind.
    """
    size = None if size is None else tuple(size)
    if source == "housenumbers":
        return _dataset(source, _housenumbers(folder), size)
    if source in ("svhn", "svhn-extra"):
        names = ("extra" if source == "svhn-extra" else "train", "test")
        paths = [_download(folder, name) for name in names]
        return _dataset(source, [mat.read(path) for path in paths], size)
    path = Path(source).expanduser()
    try:
        path.stat()
    except OSError as e:
        raise UserError(f"--data {source}: {e.strerror}; {did_you_mean(path.name, SOURCES)}give a path "
                        "that can be read, or housenumbers, svhn or svhn-extra") from e
    return _dataset(path.stem or "data", readers.read(path, size, skip_damaged), size)


def test_rows(count):
    """The rows of test images that losses are of: the first TEST_IMAGES of RandomState(0).permutation(count)."""
    return np.random.RandomState(0).permutation(count)[:TEST_IMAGES]


def unseen(images, train):
    """The rows of `images` that are not among `train`, nor copies of earlier rows.

    A density says nothing of training images, and a copy says nothing new. UserError if no row is
    left.
    """
    first = {}
    for row, digest in enumerate(hashes(images)):
        first.setdefault(digest, row)
    seen = set(first).intersection(hashes(train))
    rows = [row for digest, row in first.items() if digest not in seen]
    if not rows:
        raise UserError("every test image occurs in the training set, so that none can tell what "
                        "new images would get; give other test images")
    return rows


def hashes(images):
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
        return arrays.hdf5(path)
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
        where = folder / name
        found = f"; {where} is another file, by its md5" if where.exists() else ""
        raise UserError(f"cannot download {url} ({type(e).__name__}){found}; put it at {where} by "
                        "other means") from e


def _dataset(name, splits, size):
    """The Dataset of a reader's Splits; without a test split a tenth is held out."""
    splits = convert(splits, size)
    notes = [note for split in splits for note in split.notes]
    whose = ("images",) if len(splits) == 1 else ("training images", "test images")
    for split, of in zip(splits, whose, strict=True):
        notes += warnings(split, of)
    train = splits[0]
    if len(splits) == 1:
        splits = _held_out(train)
        notes.append(f"no test split: {len(splits[1].images)} of {len(train.images)} images, drawn "
                     "at random, are held out for testing")
    shape, test_shape = (split.images.shape[1:] for split in splits)
    if shape != test_shape:
        raise UserError(f"{train.path}: training images are {shape} and test images {test_shape}; "
                        "give both the same channels and, with --size, the same size")
    if len(splits[0].images) < 2:
        raise UserError(f"{train.path} holds 1 training image; batch statistics need at least 2")
    for split in splits:
        split.sha256 = split.sha256 or sha256(split.images)
    dataset = Dataset(name, *splits, list(dict.fromkeys(notes)))
    dataset.summary = summary(dataset)
    return dataset


def _held_out(split):
    """[train, test]: a random tenth of the images, the same each time, and the copies of those become the test images.

    A copy left behind would be a test image that was trained on. Where more than half of the images would be taken
    away like this, as from images that are all alike, the copies stay.
    """
    count = len(split.images)
    if isinstance(split.images, Streamed):
        raise UserError(f"{split.path} holds no test images, and too many images to hold some out; "
                        "add a group named test")
    if count < 10:
        raise UserError(f"{split.path} holds {count} images; at least 10 are needed")
    order = np.random.RandomState(0).permutation(count)
    digests = list(hashes(split.images))
    drawn = {digests[row] for row in order[: count // 10]}
    test = np.array([digests[row] in drawn for row in order])
    if test.sum() > count // 2:
        test = np.arange(count) < count // 10
    return [split.take(order[~test]), split.take(order[test])]
