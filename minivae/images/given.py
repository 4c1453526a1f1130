"""The images that a trained model works on: those of any path, or its run's test images; each has a name."""

import difflib

import numpy as np

from minivae.errors import UserError
from minivae.images import readers
from minivae.images.convert import convert
from minivae.images.data import test_rows
from minivae.images.split import Split, reading
from minivae.images.stream import Streamed


def read(path, shape, size=None, skip_damaged=False):
    """All images of `path` in one Split: nothing is held out, and test images follow the training images.

    shape (H, W, C), size and skip_damaged are those that the model was trained with. Grey images become colour where
    the model's images are. UserError if the images cannot be read or have another shape.
    """
    with reading(path):
        path.stat()
    splits = convert(readers.read(path, size, skip_damaged), size)
    split = splits[0] if len(splits) == 1 else _joined(splits)
    split.names = split.names or numbers(len(split.images))
    if split.images.shape[3] < shape[2] and not isinstance(split.images, Streamed):
        split.images = np.repeat(split.images, shape[2], axis=3)
        split.notes.append("grey images become colour, as the run's images are")
    found, wanted = ("x".join(map(str, s)) for s in (split.images.shape[1:], shape))
    if found != wanted:
        raise UserError(f"{path} holds images of {found} (height, width, channels), and the model takes {wanted}; give "
                        "others, or train with --size, which the run then applies to all images that it is given")
    return split


def test_images(dataset):
    """The Split of a data set's test images that losses are evaluated on, in that order."""
    split = dataset.test
    count = len(split.images)
    split.names = split.names or numbers(count)
    return split.take(test_rows(count))


def rows_named(known, names):
    """The row of each of `names` among the `known` ones. UserError if one is not there."""
    place = {name: row for row, name in enumerate(known)}
    for name in names:
        if name not in place:
            close = difflib.get_close_matches(name, known) or known[:3]
            raise UserError(f"no image is named {name}; there are such as {', '.join(close)}")
    return [place[name] for name in names]


def numbers(count):
    """The names of images that are not files: their numbers, from 0."""
    return [str(number) for number in range(count)]


def _joined(splits):
    """One Split of the training and the test images; those that are not files are train/0, train/1, ..., test/0, ..."""
    path = splits[0].path
    if any(isinstance(split.images, Streamed) for split in splits):
        raise UserError(f"{path} holds training and test images that do not fit in memory; write those that you mean "
                        "into an .h5 of their own")
    names = []
    for split, name in zip(splits, ("train", "test"), strict=True):
        names += split.names or [f"{name}/{number}" for number in numbers(len(split.images))]
    images = [split.images for split in splits]
    if len({i.shape[1:] for i in images}) > 1:
        raise UserError(f"{path} holds training images of {images[0].shape[1:]} and test images of "
                        f"{images[1].shape[1:]}; give one of the two")
    labels = [split.labels for split in splits]
    labels = None if any(of is None for of in labels) else np.concatenate(labels)
    notes = [note for split in splits for note in split.notes]
    return Split(np.concatenate(images), labels, path=path, names=names, notes=list(dict.fromkeys(notes)),
                 label_names=splits[0].label_names)
