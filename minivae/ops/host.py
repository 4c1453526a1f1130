"""What a CPU needs beside the operations, for plain and numpy_ops alike; cuda_module has the same for a GPU."""

import math
from contextlib import nullcontext

import numpy as np

SYNCHRONOUS = True  # an operation is done when it returns, so looking at a result costs no wait
IMAGES_AT_ONCE = 64  # of an evaluation: more would leave the caches
ROWS_TOGETHER = 1  # of an estimate of ln p(x): BLAS may round a row otherwise at another place among others


class Buffers:
    """Arrays made at their first use and kept: buffers("y", (64, 8), np.float32) is the same array every time."""

    def __init__(self):
        self._arrays = {}

    def __call__(self, name, shape, dtype):
        key = name, tuple(shape), np.dtype(dtype)
        if key not in self._arrays:
            self._arrays[key] = self.zeros(shape, dtype)
        return self._arrays[key]

    def zeros(self, shape, dtype):
        return np.zeros(shape, dtype)


def to_host(array):
    """The array as NumPy: itself here, a copy that waits for the device on a GPU."""
    return array


def branch(name):
    """A block whose operations a device may run beside those that follow it, until join(name)."""
    return nullcontext()


def join(name):
    """What follows needs what the branches of that name have done."""


def beside(first, second):
    """The results of first() and second(), which a device may run at the same time."""
    return first(), second()


def capture(step):
    """A function that does what step() does, faster where the device can replay its launches."""
    return step


class DoubleBuffer:
    """An array's next contents, which any thread may make ready while the present ones are in use."""

    def __init__(self, array):
        self.array = array

    def fill(self, values):
        """Keep the next contents. Nobody may change `values` before take()."""
        self.next = values

    def take(self):
        """Move what was filled in into the array, which stays where it is."""
        np.copyto(self.array, self.next)


def free_memory():
    """Bytes that the device has free for images: no limit here, where they are in its memory already."""
    return math.inf
