"""Random numbers for images one by one: those of an image do not depend on the other images."""

import copy
import hashlib
import math

import numpy as np

from minivae.ops import philox

PARTS = ("pixels", "ELBO", "IWAE", "naive", "AIS", "refit", "codes", "simulated codes", "simulated pixels",
         "simulated AIS", "labels")  # what Noise is drawn for


class Noise:
    """Random numbers of the "density" stream for N images, whose names (bytes) tell them apart.

    An image's numbers follow from the seed, its name, the part (one of PARTS, which tells uses apart) and the call:
    each takes new numbers. The images lie along `axis` of the shape asked for.
    """

    def __init__(self, seed, part, names):
        keys = [hashlib.sha256(b"%d %b" % (seed, name)).digest()[:8] for name in names]
        self.keys = np.frombuffer(b"".join(keys), "<u4").reshape(-1, 2)
        self.step = PARTS.index(part) << 32

    def normal(self, shape, axis=0):
        return self._draw(philox.normals, shape, axis)

    def uniform(self, shape, axis=0):
        """In the open interval (0, 1)."""
        return self._draw(philox.uniforms, shape, axis)

    def of(self, rows):
        """The noise of these images alone, which begins with the numbers of this one's next call."""
        part = copy.copy(self)
        part.keys = self.keys[rows]
        return part

    def _draw(self, draws, shape, axis):
        self.step += 1
        of_one = (*shape[:axis], *shape[axis + 1 :])
        numbers = draws(self.keys, philox.STREAMS["density"], self.step, math.prod(of_one))
        return np.moveaxis(numbers.reshape(-1, *of_one), 0, axis)


def numbered(count):
    """Names for images that are known by their numbers."""
    return [b"image %d" % number for number in range(count)]
