"""Labels as a model is given them: places in a list of names, which are those of its training images' labels."""

import hashlib

import numpy as np

from minivae.errors import UserError


def names(dataset):
    """What the training images' labels are called. UserError if they have none."""
    return _named(dataset.train)[0]


def places(split, known):
    """The place in `known` of each label of a Split (N,) int32; None if known is empty: the model is given no labels.

    UserError if the images have no labels, or others than are known.
    """
    if not known:
        return None
    found, number = _named(split)
    place = {name: i for i, name in enumerate(known)}
    for name in found:
        if name not in place:
            raise UserError(f"images of {split.path} have the label {name}, which no training image has; leave them "
                            "out, or train with such images too")
    return np.array([place[name] for name in found], np.int32)[number]


def sha256(dataset, known):
    """The hash in hexadecimal of the places of all labels; empty if known is."""
    if not known:
        return ""
    digest = hashlib.sha256()
    for split in (dataset.train, dataset.test):
        digest.update(places(split, known))
    return digest.hexdigest()


def _named(split):
    """The names of the labels that occur, in order, and the place of each image's label among them.

    The name of a label that is a number is that number.
    """
    if split.labels is None:
        raise UserError(f"images of {split.path} have no labels; say what each shows, as data/README.md says, or train "
                        "without --labels")
    labels, number = np.unique(split.labels, return_inverse=True)
    names = split.label_names
    return [str(label if names is None else names[label]) for label in labels], number
