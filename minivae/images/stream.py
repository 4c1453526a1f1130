"""Images that do not fit in memory: they stay in their HDF5 file and are read as updates need them.

Training sees the same batches, in the same order and with the same bits, as it does with images in memory: which
images an update takes follows from seed and update alone (philox.choose), and only where they lie differs.
"""

import hashlib
import math
import os
import resource
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from minivae.errors import UserError

SHARE = 4  # of the memory there is, images in memory may take one part of so many
PART = 2**25  # bytes of images that are held at a time


def memory():
    """Bytes that this process may use: the machine's, its container's or its own limit, whichever is least."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), resource.getrlimit(resource.RLIMIT_AS)[0]]
    try:
        with open("/sys/fs/cgroup/memory.max") as f:
            limits.append(int(f.read()))
    except (OSError, ValueError):  # no container, or "max"
        pass
    return min(limit for limit in limits if limit > 0)


def must_stream(dataset):
    """Whether an HDF5 dataset is too large to be held in memory."""
    return SHARE * dataset.nbytes > memory()


def parts(images):
    """The images in turn, as arrays of at most PART bytes (and at least one image)."""
    step = max(1, PART // max(1, images[:1].nbytes))
    return (images[i : i + step] for i in range(0, len(images), step))


def sha256(images):
    """The hash of the images' shape, as Python writes the tuple, and their bytes."""
    digest = hashlib.sha256(repr(images.shape).encode())
    for part in parts(images):
        digest.update(np.ascontiguousarray(part))
    return digest.hexdigest()


class Streamed:
    """Images (N, H, W, C) uint8 of an open HDF5 dataset: shape, len and [slice or array of rows], as an array has.

    A contiguous dataset is read around HDF5, which costs microseconds an image; other layouts through it.
    """

    def __init__(self, dataset):
        self.dataset, self.shape, self.path = dataset, dataset.shape, dataset.file.filename
        self.offset = None if dataset.external else dataset.id.get_offset()
        self.descriptor = os.open(self.path, os.O_RDONLY)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        rows = np.array(range(len(self))[rows] if isinstance(rows, slice) else rows, np.int64)
        images, size = np.empty((len(rows), *self.shape[1:]), np.uint8), math.prod(self.shape[1:])
        order = np.argsort(rows)  # the file's: disks like it
        try:
            for i, row in zip(order.tolist(), rows[order].tolist(), strict=True):
                if self.offset is None:
                    self.dataset.read_direct(images, row, i)
                elif os.preadv(self.descriptor, [images[i]], self.offset + row * size) < size:
                    raise OSError("it ends early")
        except OSError as e:
            raise UserError(f"{self.path} cannot be read any more ({e}); put it back as it was, then go on") from e
        return images


class Ahead:
    """take(make(window)), with make begun in the background one window ahead: while the updates of the last are made.

    No two of the calls to make overlap, and take has returned before the next window is begun.
    """

    def __init__(self, make, take):
        self.make, self.take, self.pool = make, take, ThreadPoolExecutor(1)
        self.window = self.made = None

    def __call__(self, window):
        if self.window != window:
            self._begin(window)
        self.take(self.made.result())
        self._begin(window + 1)

    def _begin(self, window):
        self.window, self.made = window, self.pool.submit(self.make, window)
