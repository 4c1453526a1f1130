"""SVHN's .mat files: X (H, W, C, N) and y (N, 1), in which 10 stands for the digit 0."""

import h5py
import numpy as np

from minivae.errors import UserError
from minivae.images.split import Split, check_claim, reading

CHUNK_IMAGES = 1000  # rearranged at a time


def folder(path):
    """The Splits of train_32x32.mat and, where there is one, test_32x32.mat."""
    test = path / "test_32x32.mat"
    return [read(path / "train_32x32.mat"), *([read(test)] if test.exists() else [])]


def read(path):
    """The Split of one file, of any of MATLAB's versions."""
    with reading(path):
        x, y = _load_hdf5(path) if h5py.is_hdf5(path) else _load(path)
        if x.ndim != 4:
            raise UserError(f"X has shape {x.shape}, not (H, W, C, N); give SVHN's own files")
        y = y.ravel()
        return Split(_images_first(x), np.where(y == 10, 0, y), path=path)


def _load(path):
    """X and y of versions up to 7."""
    import scipy.io

    with open(path, "rb") as f:  # opened here: scipy would look for other names
        _refuse_others([name for name, _, _ in scipy.io.whosmat(f)])
        content = scipy.io.loadmat(f, variable_names=["X", "y"])
    return content["X"], content["y"]


def _load_hdf5(path):
    """X and y of version 7.3, an HDF5 file that holds MATLAB's dimensions from last to first."""
    with h5py.File(path, "r") as f:
        _refuse_others(list(f))
        for name in ("X", "y"):
            size = (*f[name].shape, f[name].dtype.itemsize)
            check_claim(size, f[name].id.get_storage_size())
        return f["X"][()].T, f["y"][()].T


def _refuse_others(names):
    if not {"X", "y"} <= set(names):
        raise UserError(f"it holds {', '.join(names) or 'nothing'}, not X and y; give SVHN's own "
                        "files")


def _images_first(x):
    """(H, W, C, N) in MATLAB's order -> (N, H, W, C) in C's, in the same memory where possible."""
    images = x.transpose(3, 0, 1, 2)
    if not (x.flags.f_contiguous and x.flags.writeable):
        return np.ascontiguousarray(images)
    out = x.T.reshape(images.shape)  # each image's bytes stay where they are, in another order
    for i in range(0, len(out), CHUNK_IMAGES):
        out[i : i + CHUNK_IMAGES] = images[i : i + CHUNK_IMAGES].copy()
    return out
