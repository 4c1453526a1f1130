"""Images that do not fit in memory: they stay in their HDF5 file and are read when they are needed.

Training sees the same batches, in the same order and with the same bits, as it does with images in
memory: which images a step takes follows from the seed and the step alone (philox.choose).
"""

import hashlib
import math
import os

import h5py
import numpy as np

from minivae.errors import UserError
from minivae.unix import resource

MEMORY_FRACTION = 1 / 4  # of memory() that images held in memory may take
CHUNK_BYTES = 2**25  # of images that are read or converted at a time


def memory():
    """Bytes that this process may use: the least of the machine's, its container's and its own."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [machine, resource.getrlimit(resource.RLIMIT_AS)[0]]
    try:
        with open("/sys/fs/cgroup/memory.max") as f:
            limits.append(int(f.read()))
    except (OSError, ValueError):  # no container, or "max"
        pass
    return min(limit for limit in limits if limit > 0)


def must_stream(dataset):
    """Whether an HDF5 dataset is too large to be held in memory."""
    return dataset.nbytes > MEMORY_FRACTION * memory()


def chunks(images):
    """The images in turn, as arrays of at most CHUNK_BYTES, but of at least one image."""
    count = max(1, CHUNK_BYTES // max(1, images[:1].nbytes))
    for start in range(0, len(images), count):
        yield np.ascontiguousarray(images[start : start + count])


def sha256(images):
    """The hash in hexadecimal of the images' shape, as Python writes the tuple, and their bytes."""
    digest = hashlib.sha256(repr(images.shape).encode())
    for chunk in chunks(images):
        digest.update(chunk)
    return digest.hexdigest()


class Streamed:
    """Images (N, H, W, C) uint8 of an HDF5 dataset, with an array's shape, len and [slice or rows].

    A contiguous dataset is read around HDF5, in microseconds an image, other layouts through HDF5,
    and so is every one where the system cannot read at a given place, as macOS before 11.
    UserError if the file has become shorter: a memory map would end the process, HDF5 return zeros.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, dataset):
        self.path = dataset.file.filename
        self.shape = dataset.shape
        self.dataset = h5py.File(self.path, "r")[dataset.name]  # a file of its own: it stays open
        direct = not dataset.external and hasattr(os, "preadv")
        self.offset = dataset.id.get_offset() if direct else None
        self.descriptor = os.open(self.path, os.O_RDONLY)
        self.file_size = os.fstat(self.descriptor).st_size

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        rows = np.array(range(len(self))[rows] if isinstance(rows, slice) else rows, np.int64)
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        size = math.prod(self.shape[1:])
        try:
            for i in np.argsort(rows).tolist():  # in the file's order, which disks read fastest
                row = int(rows[i])
                if self.offset is None:
                    self.dataset.read_direct(images, row, i)
                else:
                    os.preadv(self.descriptor, [images[i]], self.offset + row * size)
            if os.fstat(self.descriptor).st_size < self.file_size:
                raise OSError("it has become shorter")
        except OSError as e:
            raise UserError(f"{self.path} can no longer be read ({e}); restore it, then resume the "
                            "run") from e
        return images
