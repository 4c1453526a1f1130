"""What is found of each image, in a file whose suffix says of which format: columns of values, by name."""

import csv
import io

import h5py
import numpy as np

from minivae.errors import UserError
from minivae.files import refuse_unwritable, replacing


def refuse_file(path):
    """UserError if no such file can be made at `path`: said before long work, not after it."""
    if path.suffix not in WRITERS:
        raise UserError(f"{path} has the suffix {path.suffix!r}; give a file with one of {', '.join(WRITERS)}")
    refuse_unwritable(path.parent)


def write(path, split, **columns):
    """Write a row for each image of a Split: its name, label (if there are any), then the columns (N, ...).

    A label is what it was called, or else a number. UserError if it cannot be written; what was at `path` is then
    untouched.
    """
    first = {"name": np.array([name.encode(errors="backslashreplace").decode() for name in split.names])}
    if split.labels is not None:
        first["label"] = split.labels if split.label_names is None else np.array(split.label_names)[split.labels]
    columns = first | columns
    with replacing(path) as beside, open(beside, "w+b") as file:
        WRITERS[path.suffix](file, columns)


def _h5(file, columns):
    with h5py.File(file, "w") as f:
        for name, values in columns.items():
            f[name] = values.astype(h5py.string_dtype()) if values.dtype.kind == "U" else values


def _npz(file, columns):
    np.savez(file, **columns)


def _csv(file, columns):
    """A column of several values for each image becomes name_0, name_1, ..."""
    fields = {}
    for name, values in columns.items():
        if values.ndim == 1:
            fields[name] = values
        else:
            fields |= {f"{name}_{latent}": column for latent, column in enumerate(values.T)}
    with io.TextIOWrapper(file, "utf-8", newline="") as text:
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(fields)
        rows.writerows(zip(*fields.values(), strict=True))


WRITERS = {".h5": _h5, ".npz": _npz, ".csv": _csv}
