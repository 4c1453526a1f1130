"""One image file: its pages as 8-bit pixels, upright, without transparency, scaled if that is asked for."""

import numpy as np
from PIL import Image, ImageOps, ImageSequence

from minivae.errors import UserError

SUFFIXES = {  # .heic and .heif are named, so that nobody misses them in silence
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
}
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "TGA", "AVIF")  # whatever the suffix
GREY_MODES = {"1", "L", "LA", "I", "F"}  # as Pillow calls them
ORIENTATION = 0x0112  # EXIF's tag
TURNED = 5  # from this orientation on, height and width change places
LARGEST_SUGGESTION = 64  # pixels: larger models take long
WHITE = "transparent pixels are laid over white"
SCALED = "16-bit pixels are scaled to 8 bits: 65535 becomes 255"


def opened(file):
    Image.init()
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


def look(file, upright):
    """What the pages of an image file are: [(height, width, "L", "F" or "RGB")].

    upright: whether the sides of a photo taken on its side must be right, for which it is decoded.
    """
    with opened(file) as image:
        found = []
        for page in _pages(image):
            if upright and page.getexif().get(ORIENTATION, 1) >= TURNED:
                ImageOps.exif_transpose(page, in_place=True)
            mode = "F" if page.mode == "F" else "L" if _is_grey(page) else "RGB"
            found.append((page.height, page.width, mode))
        return found


def read(file, mode, shape, scale):
    """(pages, notes): the pages of an image file as arrays (H, W, C), and what was done to them.

    mode: Pillow's "L", "F" or "RGB". scale: whether they are cropped and scaled to `shape`.
    """
    notes = set()
    pages = []
    with opened(file) as image:
        for page in _pages(image):
            plain = _plain(ImageOps.exif_transpose(page), notes).convert(mode)
            pages.append(np.asarray(fit(plain, shape[:2]) if scale else plain).reshape(shape))
    return pages, notes


def fit(image, size):
    """The largest centred crop of the shape (H, W), scaled to it with Pillow's antialiasing filter."""
    fitted = ImageOps.fit(image, size[::-1], Image.Resampling.LANCZOS)
    if image.mode != "F":
        return fitted
    return Image.fromarray(np.clip(fitted, *image.getextrema()))  # bytes are clipped by Pillow


def refuse_sizes(sizes):
    """UserError unless the images have one size, (height, width), and a model can take it."""
    height, width = min(sizes)
    side = min(min(size) for size in sizes)
    side = max(8, min(LARGEST_SUGGESTION, side // 8 * 8))
    advice = f"add --size {side} to have them cropped and scaled to {side}x{side}"
    if len(sizes) > 1:
        other = max(sizes)
        raise UserError(f"images of {len(sizes)} sizes, such as {height}x{width} and {other[0]}x{other[1]} (height x "
                        f"width); {advice}")
    if (height, width) != (28, 28) and (height % 8 or width % 8 or not height or not width):
        raise UserError(f"images of {height}x{width} pixels, and 8 must divide both; {advice}")


def _pages(image):
    """All pages; of a photo with previews behind it (MPO), the photo."""
    return [image] if image.format == "MPO" else ImageSequence.Iterator(image)


def _is_grey(image):
    return image.mode in GREY_MODES or image.mode.startswith("I;16")


def _plain(image, notes):
    """The image with 8 bits a channel (or floats, which only a whole data set can scale), nothing transparent."""
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise UserError(f"pixels from {levels.min()} to {levels.max()}; save them from 0 to 65535")
        notes.add(SCALED)
        return Image.fromarray(np.round(levels / 257).astype(np.uint8))
    if not image.has_transparency_data:
        return image
    pixels = image.convert("RGBA")
    if pixels.getextrema()[3][0] == 255:
        return pixels
    notes.add(WHITE)
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), pixels)
