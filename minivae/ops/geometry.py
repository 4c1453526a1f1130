"""SAME padding as TensorFlow defines it, in the one place that knows it.

A Geometry always describes a convolution from the big side (H, W) to the small side (h, w); a transposed
convolution is the same Geometry walked the other way. With n the big size, s the stride and k the kernel:

    out = ceil(n / s)      total = max((out - 1) s + k - n, 0)      before = total // 2      after = total - before

At stride 2 and even n that is (0, 1) for k = 3 and (1, 2) for k = 5: padding is not symmetric.
Source: tf.nn.convolution, "padding algorithm".
"""

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Geometry:
    """A k x k convolution with stride s from (height, width) to (ceil(height / s), ceil(width / s)), SAME padding.

    Small pixel (i, j) sees, through tap (a, b), big pixel (i s - top + a, j s - left + b), or zero outside.
    """

    height: int
    width: int
    kernel: int
    stride: int

    @property
    def out_height(self):
        return -(-self.height // self.stride)

    @property
    def out_width(self):
        return -(-self.width // self.stride)

    @property
    def top(self):
        return self._before(self.height, self.out_height)

    @property
    def left(self):
        return self._before(self.width, self.out_width)

    def _before(self, size, out):
        return max((out - 1) * self.stride + self.kernel - size, 0) // 2

    @property
    def padded(self):
        """(height, width) of an image that holds every window, multiples of the stride: it starts at (-top, -left)."""
        taps = -(-self.kernel // self.stride)
        return self.stride * (self.out_height - 1 + taps), self.stride * (self.out_width - 1 + taps)

    @cached_property
    def row_taps(self):
        """For each tap row that meets the image: (a, phase, small rows, big rows), the nearest first.

        Through tap row a the small rows (a slice) see big rows phase::s, of which the last slice selects as many.
        """
        taps = []
        for a in range(self.kernel):
            phase, shift = (a - self.top) % self.stride, (a - self.top) // self.stride
            first = max(-shift, 0)
            last = min(-(-(self.height - phase) // self.stride) - shift, self.out_height)
            if first < last:
                taps.append((a, phase, slice(first, last), slice(first + shift, last + shift)))
        return sorted(taps, key=lambda tap: abs(tap[3].start - tap[2].start))

    @cached_property
    def nearest(self):
        """{phase: a} of the phase's nearest tap row, which sees every big row of it; no phase that no tap row sees."""
        return {phase: a for a, phase, *_ in reversed(self.row_taps)}
