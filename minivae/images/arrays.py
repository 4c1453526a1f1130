"""Arrays in .npy, .npz and .h5 files, found by their names or by being the only images there."""

import zipfile

import h5py
import numpy as np

from minivae.errors import UserError
from minivae.images.split import Split, check_claim, reading
from minivae.images.stream import Streamed, must_stream, sha256

NAMES = [  # of arrays, (images, labels) of each split, in the order tried
    (("train", "train_images", "x_train", "train_x", "train_set_x", "images"),
     ("train_labels", "y_train", "train_y", "train_set_y", "labels")),
    (("test", "test_images", "x_test", "test_x", "test_set_x"),
     ("test_labels", "y_test", "test_y", "test_set_y")),
]
LABELS_ALONE = ("labels", "label", "y", "targets", "arr_1")  # of images that have none of the names
PICKLED = "labels that are pickled objects are left out: a pickle is never loaded"


def npy(path):
    with reading(path):
        return [Split(np.load(path, allow_pickle=False), None, path=path)]


def npz(path):
    """The arrays that `choose` names; no other is read."""
    splits = []
    with reading(path), zipfile.ZipFile(path) as archive:
        found = {}
        for member in archive.namelist():
            if member.endswith(".npy"):
                found[member.removesuffix(".npy")] = _header(archive, member)
        with np.load(path, allow_pickle=False) as f:
            for images, labels in choose(found):
                split = Split(f[images], None, path=path)
                if labels is not None and found[labels][1].hasobject:
                    split.notes.append(PICKLED)
                elif labels is not None:
                    split.labels = f[labels]
                splits.append(split)
    return splits


def _header(archive, member):
    """(shape, dtype) of an array in an .npz."""
    with archive.open(member) as f:
        if np.lib.format.read_magic(f) == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(f)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(f)
    return shape, dtype


def choose(found):
    """[(images, labels or None)]: the names of each split's arrays among {name: (shape, dtype)}.

    UserError if none has a name of NAMES and not exactly one looks like images.
    """
    known = {name.lower(): name for name in found}
    chosen = []
    for of_images, of_labels in NAMES:
        images = next((known[name] for name in of_images if name in known), None)
        labels = next((known[name] for name in of_labels if name in known), None)
        if images is not None:
            chosen.append((images, labels))
        elif not chosen:
            break
    if chosen:
        return chosen
    images = [name for name, (shape, dtype) in found.items()
              if len(shape) in (3, 4) and dtype.kind in "buif"]
    if len(images) != 1:
        raise UserError(f"it holds {', '.join(found) or 'nothing'}; name its images train and "
                        "test, or images")
    count = found[images[0]][0][:1]
    labels = (known[name] for name in LABELS_ALONE
              if name in known and found[known[name]][0][:1] == count)
    return [(images[0], next(labels, None))]


def hdf5(path):
    """The layout of data/README.md, or whatever `choose` finds.

    Images that would take too much memory become Streamed.
    """
    with reading(path), h5py.File(path, "r") as f:
        if "train/images" in f:
            names = [(f"{split}/images", f"{split}/labels") for split in ("train", "test")]
            return [_split(f[images], f.get(labels), path) for images, labels in names
                    if images in f]
        found = {}

        def note(name, item):
            if isinstance(item, h5py.Dataset):
                found[name] = item.shape or (), item.dtype

        f.visititems(note)
        return [_split(f[images], labels and f[labels], path) for images, labels in choose(found)]


def _split(images, labels, path):
    for dataset in (images, labels):
        if dataset is not None:
            check_claim((*dataset.shape, dataset.dtype.itemsize), dataset.id.get_storage_size())
    if labels is not None:
        labels = (labels.asstr() if h5py.check_string_dtype(labels.dtype) else labels)[()]
    expected = images.parent.attrs.get("sha256")
    name = images.name[1:]
    if not must_stream(images):
        images = images[()]
    elif images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:3] == (28, 28):
        raise MemoryError
    else:
        images = Streamed(images)
    found = None if expected is None else sha256(images)
    if found != expected:
        raise UserError(f"{name} does not match its sha256; restore the file, which was altered "
                        "or damaged")
    return Split(images, labels, found, path)
