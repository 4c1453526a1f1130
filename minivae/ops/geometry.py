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

    @cached_property
    def taps(self):
        """For each tap that touches the image: (a, b, small index, big index), the indices for an NHWC array.

        small index selects the small pixels whose big pixel through (a, b) lies inside; big index selects those.
        """
        rows = [self._segment(a, self.top, self.height, self.out_height) for a in range(self.kernel)]
        columns = [self._segment(b, self.left, self.width, self.out_width) for b in range(self.kernel)]
        return [
            (a, b, (slice(None), rows[a][0], columns[b][0]), (slice(None), rows[a][1], columns[b][1]))
            for a in range(self.kernel) if rows[a]
            for b in range(self.kernel) if columns[b]
        ]

    def _segment(self, tap, before, size, out):
        first = max(-((tap - before) // self.stride), 0)  # smallest i with i s - before + tap >= 0
        last = min((size - 1 + before - tap) // self.stride, out - 1)
        if last < first:
            return None
        start = first * self.stride - before + tap
        return slice(first, last + 1), slice(start, start + (last - first) * self.stride + 1, self.stride)
