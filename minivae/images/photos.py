"""One image file: its pages as 8-bit pixels, upright, without transparency, scaled if that is asked for."""

import numpy as np
from PIL import Image, ImageOps, ImageSequence

from minivae.errors import UserError

SUFFIXES = {  # .heic and .heif are named, so that nobody misses them in silence
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
}
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "TGA", "AVIF")  # whatever the suffix
LARGEST_SUGGESTION = 64  # pixels: larger models take long
WHITE = "transparent pixels are laid over white"
SCALED = "16-bit pixels are scaled to 8 bits: 65535 becomes 255"


def read(file, size):
    """(pages, notes): the pages of an image file and what was done to them.

    A page is (H, W, 1 or 3), uint8, or float32 if its pixels are floats, which only a whole data
    set can scale. size: the (H, W) that it is cropped and scaled to, or None.
    """
    Image.init()
    notes = set()
    pages = []
    with Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
        one = image.format == "MPO"  # a photo, with previews of it behind it
        for page in [image] if one else ImageSequence.Iterator(image):
            plain = _plain(ImageOps.exif_transpose(page), notes)
            if size is not None:
                plain = fit(plain, size)
            pages.append(np.asarray(plain).reshape(plain.height, plain.width, -1))
    return pages, notes


def fit(image, size):
    """The largest centred crop of the shape (H, W), scaled to it with Pillow's antialiasing filter."""
    fitted = ImageOps.fit(image, size[::-1], Image.Resampling.LANCZOS)
    if image.mode != "F":
        return fitted
    return Image.fromarray(np.clip(fitted, *image.getextrema()))  # bytes are clipped by Pillow


def refuse_sizes(sizes):
    """UserError unless images of these sizes, (height, width), can be taken as they are."""
    (height, width), *others = sorted(sizes)
    side = max(8, min(LARGEST_SUGGESTION, height // 8 * 8, width // 8 * 8))
    advice = f"train with --size {side} to have them cropped and scaled to {side}x{side}"
    if others:
        raise UserError(f"images of several sizes, such as {height}x{width} and "
                        f"{others[0][0]}x{others[0][1]}; {advice}")
    if (height, width) != (28, 28) and (height % 8 or width % 8 or not height or not width):
        raise UserError(f"images of {height}x{width} pixels, and 8 must divide both; {advice}")


def _plain(image, notes):
    """The image in mode L, RGB or F, nothing transparent."""
    mode = image.mode if image.mode in ("L", "F") else "L" if image.mode in ("1", "LA") else "RGB"
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise UserError(f"pixels from {levels.min()} to {levels.max()}, not 0 to 65535")
        notes.add(SCALED)
        return Image.fromarray(np.round(levels / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            notes.add(WHITE)
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)
