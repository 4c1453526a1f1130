"""MNIST's idx files, packed with gzip or not: big-endian arrays behind a header of a few bytes.

Source: http://yann.lecun.com/exdb/mnist, "The IDX file format".
"""

import gzip
import re

import numpy as np

from minivae.errors import UserError
from minivae.images.split import Split, reading

TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}  # by the header's third byte
GZIP = b"\x1f\x8b"  # the first bytes of such a file


def is_idx(path):
    return re.search(r"idx\d", path.name.lower()) is not None


def folder(path):
    """The Splits of a folder that holds MNIST's four files, or the two of its training images."""
    files = {_unpacked(file): file for file in sorted(path.glob("[!.]*idx3*"), reverse=True)}
    train = [file for name, file in files.items() if "train" in name.lower()]
    test = [file for name, file in files.items() if "train" not in name.lower()]
    if len(train) != 1 or len(test) > 1:
        raise UserError(f"{path} must hold one idx3 file of training images and at most one of "
                        f"test images, and holds {', '.join(files)}; name one with --data")
    return [read(file) for file in train + test]


def read(path):
    """The Split of a file of images, with the labels of the idx1 file that lies beside it."""
    wanted = re.sub("images(.)idx3", r"labels\1idx1", _unpacked(path))
    labels = [file for file in sorted(path.parent.glob("*idx1*")) if _unpacked(file) == wanted]
    return Split(_array(path), _array(labels[0]) if labels else None, path=path)


def _unpacked(path):
    return path.name.removesuffix(".gz")


def _array(path):
    with reading(path):
        content = path.read_bytes()
        if content.startswith(GZIP):
            content = gzip.decompress(content)
        zero, kind, dimensions = content[:2], content[2], content[3]
        if zero != b"\0\0" or kind not in TYPES:
            raise ValueError("it does not begin as an idx file does")
        shape = np.frombuffer(content, ">u4", dimensions, 4).tolist()
        values = np.frombuffer(content, TYPES[kind], offset=4 + 4 * dimensions).reshape(shape)
        return values.astype(values.dtype.newbyteorder("="))
