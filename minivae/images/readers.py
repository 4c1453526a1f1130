"""Readers of image files, one for each kind, each a list of (images, labels or None, path): training, then test images.

Whatever a file holds, a reader returns or raises UserError, and allocates nothing that the file's size does not back.
"""

import contextlib
import math
import struct
import tokenize
import warnings
import zipfile
import zlib

import numpy as np

from minivae.errors import UserError
from minivae.images.stream import Streamed, must_stream, sha256

NAMES = {  # arrays of an .npz: (images, labels) in the order tried
    "train": (("train", "train_images", "x_train", "images"), ("train_labels", "y_train", "labels")),
    "test": (("test", "test_images", "x_test"), ("test_labels", "y_test")),
}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # whatever the suffix says
GREY, COLOUR = {"1", "L", "LA"}, {"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}  # modes with 8 bits at most
LARGEST_RATIO = 1100  # deflate cannot pack tighter: a header that claims more than this times its file lies
HARMLESS = 2**26  # bytes that any file may claim
PART = 1000  # images rearranged at a time


def mat(paths):
    """SVHN's two .mat files: X (H, W, C, N) and y (N, 1), in which 10 stands for the digit 0."""
    import scipy.io

    splits = []
    for path in paths:
        with reading(path), open(path, "rb") as f:  # opened here: scipy would look for other names
            shapes = {name: shape for name, shape, _ in scipy.io.whosmat(f)}
            if not {"X", "y"} <= set(shapes):
                raise ValueError(f"it holds {', '.join(shapes) or 'nothing'}, not X and y")
            for name in ("X", "y"):
                check_claim(shapes[name], path.stat().st_size)
            content = scipy.io.loadmat(f, variable_names=["X", "y"])
            x, y = content.pop("X"), content.pop("y").ravel()
            if x.ndim != 4:
                raise ValueError(f"X has shape {x.shape}, not (H, W, C, N)")
            splits.append((_images_first(x), np.where(y == 10, 0, y), path))
    return splits


def _images_first(x):
    """(H, W, C, N) in MATLAB's order -> (N, H, W, C) in C's: image by image, in the same memory where that can be."""
    images = x.transpose(3, 0, 1, 2)
    if not (x.flags.f_contiguous and x.flags.writeable):
        return np.ascontiguousarray(images)
    out = x.T.reshape(images.shape)  # each image's bytes stay where they are, in another order
    for i in range(0, len(out), PART):
        out[i : i + PART] = images[i : i + PART].copy()
    return out


def npz(path):
    with reading(path):
        names = _npz_names(path)
        with np.load(path, allow_pickle=False) as f:
            splits = []
            for images, labels in NAMES.values():
                found = next((n for n in images if n in names), None)
                if found:
                    label = next((n for n in labels if n in names), None)
                    splits.append((f[found], f[label] if label else None, path))
    if not splits or not set(NAMES["train"][0]) & set(names):
        raise UserError(f"{path} holds {', '.join(names) or 'nothing'}; name its images train and test, or images")
    return splits


def _npz_names(path):
    """The arrays' names, each header held against what the file holds, before anything is allocated."""
    names, lib = [], np.lib.format
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            with archive.open(info) as f:
                version = lib.read_magic(f)
                shape, _, dtype = (lib.read_array_header_1_0 if version == (1, 0) else lib.read_array_header_2_0)(f)
            if dtype.hasobject:
                raise ValueError(f"{info.filename} holds pickled objects, which are never loaded")
            check_claim((*shape, dtype.itemsize), info.compress_size)
            names.append(info.filename.removesuffix(".npy"))
    return names


def hdf5(path):
    """The layout of data/README.md. A split that would take too much memory stays in the file, as Streamed."""
    import h5py

    with reading(path), contextlib.ExitStack() as closing:
        f = closing.enter_context(h5py.File(path, "r"))
        if "train" not in f:
            raise ValueError("it holds no group named train; see data/README.md")
        splits = [(*_group(f[split]), path) for split in ("train", "test") if split in f]
        if any(isinstance(images, Streamed) for images, *_ in splits):
            closing.pop_all()  # open as long as it is read
    return splits


def _group(group):
    images, labels = group["images"], group.get("labels")
    for dataset in (images, labels):
        if dataset is not None:
            check_claim((*dataset.shape, dataset.dtype.itemsize), dataset.id.get_storage_size())
    labels = None if labels is None else labels[()]
    if must_stream(images):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:3] == (28, 28):
            raise MemoryError
        images = Streamed(images)
    else:
        images = images[()]
    if group.attrs.get("sha256", None) not in (None, sha256(images)):
        raise ValueError(f"{group.name[1:]}/images does not match its sha256: the file was altered")
    return images, labels


def folder(path):
    from PIL import Image

    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UserError(f"{path} holds neither train_32x32.mat nor image files; give a folder that does")
    images = None
    for i, file in enumerate(files):
        with reading(file), Image.open(file, formats=IMAGE_FORMATS) as image:
            check_claim((image.height, image.width, 4), file.stat().st_size)
            if image.mode not in GREY | COLOUR:
                raise ValueError(f"its pixels are of mode {image.mode}: save it with 8 bits for each value")
            grey = image.mode in GREY if images is None else images.shape[3] == 1
            pixels = np.asarray(image.convert("L" if grey else "RGB")).reshape(image.height, image.width, -1)
            if images is None:
                images = np.empty((len(files), *pixels.shape), np.uint8)
            if pixels.shape != images.shape[1:]:
                raise ValueError(f"it is {image.width}x{image.height}, the first image "
                                 f"{images.shape[2]}x{images.shape[1]}: all must be of one size")
            images[i] = pixels
    return [(images, None, path)]


@contextlib.contextmanager
def reading(path):
    """Whatever the libraries raise for a damaged file, as one line. They raise these, and no others, when fuzzed."""
    from PIL.Image import DecompressionBombError
    from scipy.io.matlab import MatReadError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the one line is enough
            yield
    except FileNotFoundError as e:
        raise UserError(f"{path} is missing; put it there or give another --data") from e
    except MemoryError as e:
        raise UserError(f"{path} does not fit in memory; write its images into an .h5, uint8 (N, H, W, C) as "
                        "data/README.md says: those are read as they are needed") from e
    except (OSError, ValueError, KeyError, TypeError, EOFError, IndexError, OverflowError, RuntimeError,
            AttributeError, SyntaxError, tokenize.TokenError, struct.error, zlib.error, zipfile.BadZipFile,
            DecompressionBombError, MatReadError) as e:
        reason = " ".join(str(e).split())[:200] or type(e).__name__
        raise UserError(f"{path} cannot be read ({reason}); it may be damaged or of another kind: make it anew") from e


def check_claim(sizes, stored):
    """ValueError if the product of `sizes`, in bytes, cannot come from `stored` bytes of a file."""
    claim = math.prod(int(n) for n in sizes)
    if claim > max(LARGEST_RATIO * stored, HARMLESS):
        raise ValueError(f"its header claims {claim:,} bytes, which {stored:,} bytes of a file cannot hold")
