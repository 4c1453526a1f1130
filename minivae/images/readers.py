"""Which reader reads a path. A reader returns Splits or raises UserError, whatever a file holds."""

import json
import shlex
import tarfile
import tempfile
import zipfile
from pathlib import Path

from minivae.errors import UserError
from minivae.images import arrays, folder, idx, mat, photos
from minivae.images.split import reading

ARRAYS = {".npy": arrays.npy, ".npz": arrays.npz, ".h5": arrays.hdf5, ".hdf5": arrays.hdf5}
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
CSV = """import numpy as np
a = np.loadtxt({file}, int, delimiter=",", skiprows=1)
np.savez({npz}, images=a[:, 1:].reshape(-1, 28, 28), labels=a[:, 0])"""
CIFAR = """import glob, pickle, numpy as np
files = lambda *names: sorted(f for n in names for f in glob.glob({file} + "/" + n))
read = lambda *names: [pickle.load(open(f, "rb"), encoding="bytes") for f in files(*names)]
pixels = lambda part: np.concatenate([d[b"data"] for d in part]).reshape(-1, 3, 32, 32)
labels = lambda part: np.concatenate([d.get(b"labels") or d[b"fine_labels"] for d in part])
a, b = read("data_batch_?", "train"), read("test_batch", "test")
np.savez({npz}, x_train=pixels(a), y_train=labels(a), x_test=pixels(b), y_test=labels(b))"""


def read(path, size=None, skip_damaged=False):
    """The Splits of a file or folder; UserError if it is of no kind that can be read."""
    suffix = path.suffix.lower()
    if path.is_dir():
        return _read_folder(path, size, skip_damaged)
    if idx.is_idx(path):
        return [idx.read(path)]
    if path.name.lower().endswith(ARCHIVES):
        return _read_archive(path, size, skip_damaged)
    if suffix in photos.SUFFIXES:  # of many pages
        return folder.read(path.parent, [Path(path.name)], size, skip_damaged)
    if suffix in ARRAYS:
        return ARRAYS[suffix](path)
    if suffix == ".mat":
        return [mat.read(path)]
    if suffix == ".csv":
        raise UserError(f"{path} holds text; if its lines are a label and the pixels of a 28x28 "
                        f"image, this converts it: {_line(CSV, path)}")
    _refuse_cifar(path.parent, [path.name])
    raise UserError(f"{path} is of a kind that is not read; give a folder, a .zip or .tar of image "
                    "files, an .npz, .npy, .h5 or .mat, or MNIST's idx files")


def _read_folder(path, size, skip_damaged):
    if any(path.glob("*_32x32.mat")):
        return mat.folder(path)
    if any(path.glob("*idx3*")):
        return idx.folder(path)
    files = folder.find(path)
    if files:
        return folder.read(path, files, size, skip_damaged)
    for inside in (path, *path.glob("*/")):
        _refuse_cifar(inside, [file.name for file in inside.iterdir()])
    raise UserError(f"{path} holds no image files, no train_32x32.mat and no idx files; give "
                    "another folder, or a file in it")


def _read_archive(path, size, skip_damaged):
    """What the archive holds, read as a folder. Its images are in memory once they are read."""
    with tempfile.TemporaryDirectory() as unpacked:
        try:
            with reading(path):
                if path.suffix.lower() == ".zip":
                    with zipfile.ZipFile(path) as archive:
                        archive.extractall(unpacked)
                else:
                    with tarfile.open(path) as archive:
                        archive.extractall(unpacked, filter="data")
            splits = _read_folder(Path(unpacked), size, skip_damaged)
        except UserError as e:
            raise UserError(str(e).replace(unpacked, str(path))) from e
    for split in splits:
        split.path = path
    return splits


def _refuse_cifar(path, names):
    if "data_batch_1" in names or {"train", "test", "meta"} <= set(names):
        raise UserError(f"{path} holds CIFAR's pickles, which could run any program and are never "
                        "read; if you trust them (unpacked, if they are in an archive), this "
                        f"converts them: {_line(CIFAR, path)}")


def _line(code, path):
    """The shell's command that runs `code`, which makes an .npz of `path`."""
    code = code.format(file=json.dumps(str(path)), npz=json.dumps(f"{path}.npz"))
    return f"python -c {shlex.quote('; '.join(code.splitlines()))}"
