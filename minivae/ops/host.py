"""What a CPU needs beside the operations, for plain and numpy_ops alike; cuda_module has the same for a GPU."""

import numpy as np


class Buffers:
    """Arrays made at their first use and kept: buffers("y", (64, 8), np.float32) is the same array every time."""

    def __init__(self):
        self._arrays = {}

    def __call__(self, name, shape, dtype):
        key = name, tuple(shape), np.dtype(dtype)
        if key not in self._arrays:
            self._arrays[key] = np.zeros(shape, dtype)
        return self._arrays[key]


def to_host(array):
    """The array as NumPy: itself here, a copy that waits for the device on a GPU."""
    return array


def capture(step):
    """A function that does what step() does, faster where the device can replay its launches."""
    return step
