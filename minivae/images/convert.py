"""From arrays of the usual types and layouts to images (N, H, W, C) uint8 and labels (N,) int64."""

import numpy as np
from PIL import Image
from tqdm import tqdm

from minivae.errors import UserError
from minivae.images import photos
from minivae.images.split import Split
from minivae.images.stream import Streamed, chunks

RANGES = {"f": ((0, 1), (-1, 1), (0, 255)), "uint16": ((0, 255), (0, 65535))}  # in the order tried


def convert(splits, size):
    """New Splits whose images have one type, layout and size, and whose labels are numbers.

    size: the (H, W) that images are cropped and scaled to, or None. Labels that were texts are
    numbered, and their label_names hold those of all splits in order.
    """
    every = [split.images for split in splits]
    texts = [_texts(split.labels) for split in splits]
    label_names = sorted(set().union(*(text.tolist() for text in texts if text is not None)))
    converted = []
    for split, text in zip(splits, texts, strict=True):
        notes = list(split.notes)
        labels = split.labels if text is None else np.searchsorted(label_names, text)
        try:
            images = _as_images(split.images, every, size, notes)
            if labels is not None:
                labels = _as_integers(labels, len(images), notes)
        except UserError as e:
            raise UserError(f"{split.path}: {e}") from e
        digest = split.sha256 if images is split.images else None
        converted.append(Split(images, labels, digest, split.path, split.names, notes,
                               label_names or None))
    return converted


def _as_images(images, every, size, notes):
    images = _channels_last(images, notes)
    if not len(images):
        raise UserError("it holds no images; give a file that does")
    found = images.shape[1:3]
    if size is None:
        photos.refuse_sizes({found})
    if isinstance(images, Streamed):
        if size not in (None, found):
            raise UserError(f"images of {found[0]}x{found[1]} that do not fit in memory cannot be "
                            "scaled; write them in the size you want, and leave --size out")
        return images
    images = np.ascontiguousarray(_as_uint8(images, every, notes))
    if size not in (None, found):
        return _scaled(images, size)
    if found == (28, 28):
        notes.append("28x28 images are padded with 2 pixels of zeros on each side, to 32x32")
        return np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    return images


def _channels_last(images, notes):
    shape = images.shape
    in_memory = isinstance(images, np.ndarray)
    if in_memory and len(shape) == 3 and shape[2] > 4:  # else it may be one image (H, W, C)
        return images[..., None]
    if len(shape) == 4 and shape[3] in (1, 3):
        return images
    if in_memory and len(shape) == 4 and shape[1] in (1, 3):
        notes.append(f"images of shape {shape} are taken to be (N, C, H, W)")
        return images.transpose(0, 2, 3, 1)
    raise UserError(f"images of shape {shape}; save them as (N, H, W), (N, H, W, 1), (N, H, W, 3) "
                    "or (N, 3, H, W)")


def _as_uint8(images, every, notes):
    """Images as uint8, on a scale that fits `every` array of their type: a type means one thing."""
    dtype = images.dtype
    if dtype == np.uint8:
        return images
    if dtype.kind == "b":
        return images * np.uint8(255)
    if dtype.kind not in "uif":
        raise UserError(f"images of type {dtype}; save them as uint8, or floats from 0 to 1")
    alike = [other for other in every if other.dtype == dtype and other.size]
    low = np.min([other.min() for other in alike])  # NaN if one is
    high = np.max([other.max() for other in alike])
    ranges = RANGES.get(dtype.name) or RANGES.get(dtype.kind) or [(0, 255)]
    fitting = [limit for limit in ranges if limit[0] <= low <= high <= limit[1]]  # none for NaN
    if not fitting:
        known = " or ".join(f"from {first} to {last}" for first, last in ranges)
        raise UserError(f"{dtype} pixels from {low} to {high}; save them {known}")
    bottom, top = fitting[0]
    if dtype.kind == "f" or top > 255:
        notes.append(f"{dtype} pixels from {low:.6g} to {high:.6g} are taken to be on a scale from "
                     f"{bottom} to {top}")
    scale = 255 / (top - bottom)
    return np.concatenate([np.round((chunk - bottom) * scale).astype(np.uint8)
                           for chunk in chunks(images)])


def _scaled(images, size):
    scaled = np.empty((len(images), *size, images.shape[3]), np.uint8)
    rows = tqdm(images, "scaling images", delay=1, leave=False, disable=None)
    for image, out in zip(rows, scaled, strict=True):
        pixels = image if image.shape[2] == 3 else image[..., 0]
        out[...] = np.reshape(photos.fit(Image.fromarray(pixels), size), out.shape)
    return scaled


def _texts(labels):
    """Labels (N,) or (N, 1) that are texts, None if they are anything else."""
    if labels is None or labels.dtype.kind not in "USO" or labels.shape[1:] not in ((), (1,)):
        return None
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, errors="replace")
    return labels.astype(str).reshape(-1)


def _as_integers(labels, count, notes):
    """Labels (N,), (N, 1) or one-hot (N, K) as int64 (N,); None, with a note, if they are others."""
    shape = labels.shape
    if shape[:1] != (count,):
        raise UserError(f"labels of shape {shape} for {count} images; save one for each")
    if labels.dtype.kind in "buif":
        numbers = labels[:, 0] if shape == (count, 1) else labels
        if numbers.ndim == 2 and np.isin(numbers, (0, 1)).all() and (numbers.sum(1) == 1).all():
            numbers = numbers.argmax(1)
        with np.errstate(invalid="ignore"):
            integers = numbers.astype(np.int64)
        if numbers.ndim == 1 and np.array_equal(integers, numbers):
            return integers
    notes.append(f"labels of shape {shape} and type {labels.dtype} name no classes and are left out")
    return None
