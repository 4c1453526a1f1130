"""Images for other programs: an .npz, or a folder of PNG files. `--data` reads both again, with their labels."""

from urllib.parse import quote

import numpy as np
from PIL import Image

from minivae.errors import UserError
from minivae.files import cannot_write, refuse_unwritable, replacing
from minivae.images import photos, readers


def refuse_place(path):
    """UserError if `export` cannot write to `path`: said before long work, not after it."""
    if path.suffix == ".npz":
        refuse_unwritable(path.parent)
    elif path.suffix.lower() in {*photos.SUFFIXES, *readers.ARRAYS} or path.is_file():
        raise UserError(f"{path} is neither an .npz nor a folder; give one of the two")
    else:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise cannot_write(path, e) from e
        if found := next(path.iterdir(), None):
            raise UserError(f"{path} is not empty ({found.name} is in it); choose a new or an empty folder")


def export(path, images, labels=None):
    """Write images (N, H, W, C) uint8 as the array `images` of an .npz, or as 0.png, 1.png, ... into a folder.

    labels: N names, which become the array `labels`, or a folder for the images of each.
    """
    if path.suffix == ".npz":
        arrays = {"images": images} if labels is None else {"images": images, "labels": np.array(labels)}
        with replacing(path) as beside, open(beside, "wb") as file:
            np.savez(file, **arrays)
        return
    digits = len(str(len(images) - 1))
    for number, image in enumerate(images):
        folder = path if labels is None else path / folder_name(labels[number])
        folder.mkdir(exist_ok=True)
        with replacing(folder / f"{number:0{digits}}.png") as beside:
            Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(beside, format="png")


def folder_name(label):
    """The label itself, where it can name a folder that is not hidden."""
    return quote(label, safe="").replace(".", "%2E") if "/" in label or label.startswith(".") else label
