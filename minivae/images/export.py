"""Images for other programs: an .npz, or a folder of PNG files."""

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


def export(path, images):
    """Write images (N, H, W, C) uint8 as the array `images` of an .npz, or as 0.png, 1.png, ... into a folder."""
    if path.suffix == ".npz":
        with replacing(path) as beside, open(beside, "wb") as file:
            np.savez(file, images=images)
        return
    digits = len(str(len(images) - 1))
    for number, image in enumerate(images):
        with replacing(path / f"{number:0{digits}}.png") as beside:
            Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(beside, format="png")
