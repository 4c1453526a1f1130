"""What was read, in one line, and what about it may not be what the user means."""

import numpy as np
from PIL import Image

from minivae.images.stream import Streamed, chunks

SAMPLED = 1000  # of streamed images
DARK = 2  # images without a pixel of this level are black to the eye
SPARSE = 0.95  # MNIST has 0.85 of one level
LISTED = 10  # names in a line


def summary(dataset):
    """One line: how many images, of which size and type, their pixels, the labels."""
    train, test = dataset.train, dataset.test
    height, width, channels = train.images.shape[1:]
    counts = _histogram(train.images)
    levels = np.flatnonzero(counts)
    mean = counts @ np.arange(256) / counts.sum()
    return (f"{dataset.name}: {len(train.images):,} training and {len(test.images):,} test images of "
            f"{height}x{width}x{channels}, uint8, pixels from {levels[0]} to {levels[-1]} with mean {mean:.1f}, "
            f"{_labels(train)}")


def _labels(split):
    names = split.label_names
    if split.labels is None:
        return "no labels"
    if names is None:
        names = np.unique(split.labels).tolist()
    return f"{len(names)} label{'s' * (len(names) != 1)}: {listed([str(name) for name in names])}"


def warnings(split, of):
    """Lines about a Split's images; `of` is what these are called, such as "test images"."""
    found = []
    counts = _histogram(split.images)
    highest = np.flatnonzero(counts)[-1]
    common = counts.argmax()
    if highest < DARK:
        meant = f"; if {highest} stands for white, save them as bool, or 255 times as large" if highest else ""
        found.append(f"warning: no pixel of the {of} is above {highest}, so all are black{meant}")
    elif counts[common] > SPARSE * counts.sum():
        found.append(f"warning: {counts[common] / counts.sum():.1%} of the pixels of the {of} are {common}")
    copies = _copies(split)
    if copies:
        found.append(f"warning: {len(copies)} of the {of} are copies of others: {listed(copies)}")
    return found


def _histogram(images):
    """How many pixels have each level, (256,); of streamed images, of SAMPLED at even distances."""
    if isinstance(images, Streamed):
        images = images[:: max(1, len(images) // SAMPLED)]
    return sum(np.array(Image.fromarray(chunk.reshape(len(chunk), -1)).histogram()) for chunk in chunks(images))


def _copies(split):
    """"COPY = FIRST" for each image that came before, by name or by number. Streamed images are not compared."""
    if isinstance(split.images, Streamed):
        return []
    first = {}
    names = split.names or [f"image {row}" for row in range(len(split.images))]
    earlier = [first.setdefault(hash(image.tobytes()), name) for image, name in zip(split.images, names, strict=True)]
    return [f"{name} = {other}" for name, other in zip(names, earlier, strict=True) if name != other]


def listed(names):
    """The first ten names, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
