"""The codes of images in a file, whose suffix says of which format: mean and variance of q(z|x), names, labels."""

import csv
import io

import h5py
import numpy as np

from minivae.errors import UserError
from minivae.files import refuse_unwritable, replacing


def refuse_file(path):
    """UserError if no file of codes can be made at `path`: said before long work, not after it."""
    if path.suffix not in WRITERS:
        raise UserError(f"{path} has the suffix {path.suffix!r}; codes are written to {', '.join(WRITERS)} files")
    refuse_unwritable(path.parent)


def write(path, split, label_names, mean, var):
    """Write what belongs to each image of a Split: name, label (if there are any), mean and var (N, Z).

    A label is what it was called, or else a number. UserError if it cannot be written; what was at `path` is then
    untouched.
    """
    columns = {"name": np.array([name.encode(errors="backslashreplace").decode() for name in split.names])}
    if split.labels is not None:
        columns["label"] = split.labels if label_names is None else np.array(label_names)[split.labels]
    columns |= {"mean": mean, "var": var}
    with replacing(path) as beside, open(beside, "w+b") as file:
        WRITERS[path.suffix](file, columns)


def _h5(file, columns):
    with h5py.File(file, "w") as f:
        for name, values in columns.items():
            f[name] = values.astype(h5py.string_dtype()) if values.dtype.kind == "U" else values


def _npz(file, columns):
    np.savez(file, **columns)


def _csv(file, columns):
    """A row for each image; columns of a latent each are mean_0, mean_1, ..., var_0, ..."""
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
