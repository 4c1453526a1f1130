"""Readers, one for each kind of file: they return a list of the training and the test Split.

A reader returns or raises UserError, whatever its file holds; not every file has a test Split.
"""

import contextlib
import math
import os
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from minivae.errors import UserError
from minivae.images.stream import Streamed, must_stream, sha256

NAMES = [  # that arrays in an .npz may have: (images, labels) of each split, in the order tried
    (("train", "train_images", "x_train", "images"), ("train_labels", "y_train", "labels")),
    (("test", "test_images", "x_test"), ("test_labels", "y_test")),
]
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # whatever the suffix says
GREY_MODES = {"1", "L", "LA"}
COLOUR_MODES = {"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}  # as Pillow calls them
LARGEST_RATIO = 1100  # of bytes to bytes stored: deflate cannot pack tighter
HARMLESS = 2**26  # bytes that any file may claim
CHUNK_IMAGES = 1000  # rearranged at a time


@dataclass
class Split:
    """images (N, H, W, C) uint8, labels (N,) int64 or None, sha256 of the images' shape and bytes.

    Of images, only shape, len and images[slice or array of rows] are used, so they may be Streamed.
    A reader's own Splits hold what `path` holds, of any type and shape, and sha256 if it is known.
    """

    images: np.ndarray | Streamed
    labels: np.ndarray | None
    sha256: str | None = None
    path: Path | None = None


def read(path):
    """The Splits of a file or folder; UserError if it is of no kind that can be read."""
    if path.is_dir():
        if any(path.glob("*_32x32.mat")):
            return mat([path / "train_32x32.mat", path / "test_32x32.mat"])
        return folder(path)
    kinds = {".npz": npz, ".h5": hdf5, ".hdf5": hdf5}
    if path.suffix not in kinds:
        raise UserError(f"{path} is of a kind that is not read; give a folder, an .npz or an .h5")
    return kinds[path.suffix](path)


def mat(paths):
    """SVHN's two .mat files: X (H, W, C, N) and y (N, 1), in which 10 stands for the digit 0."""
    import scipy.io

    splits = []
    for path in paths:
        with reading(path), open(path, "rb") as f:  # opened here: scipy would look for other names
            shapes = {name: shape for name, shape, _ in scipy.io.whosmat(f)}
            if not {"X", "y"} <= set(shapes):
                raise UserError(f"it holds {', '.join(shapes) or 'nothing'}, not X and y; give "
                                "SVHN's own files")
            content = scipy.io.loadmat(f, variable_names=["X", "y"])
            x = content.pop("X")
            y = content.pop("y").ravel()
            if x.ndim != 4:
                raise UserError(f"X has shape {x.shape}, not (H, W, C, N); give SVHN's own files")
            splits.append(Split(_images_first(x), np.where(y == 10, 0, y), path=path))
    return splits


def _images_first(x):
    """(H, W, C, N) in MATLAB's order -> (N, H, W, C) in C's, in the same memory where possible."""
    images = x.transpose(3, 0, 1, 2)
    if not (x.flags.f_contiguous and x.flags.writeable):
        return np.ascontiguousarray(images)
    out = x.T.reshape(images.shape)  # each image's bytes stay where they are, in another order
    for i in range(0, len(out), CHUNK_IMAGES):
        out[i : i + CHUNK_IMAGES] = images[i : i + CHUNK_IMAGES].copy()
    return out


def npz(path):
    """Arrays under one of NAMES."""
    splits = []
    with reading(path):
        zipfile.ZipFile(path).close()  # np.load would take other kinds of file as well
        with np.load(path, allow_pickle=False) as f:
            for of_images, of_labels in NAMES:
                images = next((f[name] for name in of_images if name in f), None)
                labels = next((f[name] for name in of_labels if name in f), None)
                if images is not None:
                    splits.append(Split(images, labels, path=path))
                elif not splits:
                    raise UserError(f"it holds {', '.join(f) or 'nothing'}; name its images train "
                                    "and test, or images")
    return splits


def hdf5(path):
    """The layout of data/README.md. Images that would take too much memory become Streamed."""
    with reading(path), h5py.File(path, "r") as f:
        if "train/images" not in f:
            raise UserError("it holds no train/images; data/README.md describes the layout")
        return [_group(f[name], path) for name in ("train", "test") if f"{name}/images" in f]


def _group(group, path):
    images = group["images"]
    labels = group.get("labels")
    for dataset in (images, labels):
        if dataset is not None:
            check_claim((*dataset.shape, dataset.dtype.itemsize), dataset.id.get_storage_size())
    labels = None if labels is None else labels[()]
    if not must_stream(images):
        images = images[()]
    elif images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:3] == (28, 28):
        raise MemoryError
    else:
        images = Streamed(images)
    expected = group.attrs.get("sha256")
    found = None if expected is None else sha256(images)
    if found != expected:
        raise UserError(f"{group.name[1:]}/images does not match its sha256; restore the file, "
                        "which was altered or damaged")
    return Split(images, labels, found, path)


def folder(path):
    """Every image file in a folder and the folders in it, in the order of their paths."""
    from PIL import Image

    with reading(path):
        files = [Path(parent, name) for parent, _, names in os.walk(path, onerror=_raise)
                 for name in names]
    files = sorted(file for file in files if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UserError(f"{path} holds no image files and no train_32x32.mat; give another")
    images = None
    for i, file in enumerate(files):
        with reading(file), Image.open(file, formats=IMAGE_FORMATS) as image:
            if image.mode not in GREY_MODES | COLOUR_MODES:
                raise UserError(f"its pixels have mode {image.mode}; save it with 8 bits a channel")
            grey = image.mode in GREY_MODES if images is None else images.shape[3] == 1
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
            pixels = pixels.reshape(image.height, image.width, -1)
        if images is None:
            images = np.empty((len(files), *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            raise UserError(f"{file} is {image.width}x{image.height}, but {files[0]} "
                            f"{images.shape[2]}x{images.shape[1]}; scale all images to one size")
        images[i] = pixels
    return [Split(images, None, path=path)]


def _raise(error):
    raise error


@contextlib.contextmanager
def reading(path):
    """Whatever goes wrong with `path` becomes a UserError that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the one line is enough
            yield
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    except MemoryError as e:
        raise UserError(f"{path} does not fit in memory; write its images into an .h5, as uint8 "
                        "(N, H, W, C) and as data/README.md says, to have them streamed") from e
    except Exception as e:  # for damaged bytes the libraries raise more than a dozen kinds
        if isinstance(e, OSError) and e.errno:
            raise UserError(f"{e.filename or path} cannot be read ({os.strerror(e.errno)}); give a path "
                            "that can be") from e
        reason = " ".join(str(e).split())[:200] or type(e).__name__
        raise UserError(f"{path} cannot be read ({reason}); put a good copy in its place, or save "
                        "its images as data/README.md says") from e


def check_claim(sizes, stored):
    """ValueError if the product of `sizes`, in bytes, cannot come from `stored` bytes of a file."""
    claim = math.prod(int(n) for n in sizes)
    if claim > max(LARGEST_RATIO * stored, HARMLESS):
        raise ValueError(f"its header claims {claim:,} bytes, but it stores {stored:,}")
