"""The three convolutions in NumPy, as one product for each row of the kernel; see numpy_ops for the shapes' letters.

im2col unfolds x along the width only. Tap row a of the kernel meets big rows s i - top + a: for stride s these are
every s-th row, so an unfolded x kept as s phases of rows, rows outermost, holds what tap row a sees in one piece:

    cols (s, ceil(H / s), w, n, k I)     conv: y[i] = sum_a cols[phase, i + shift] @ w[a]     (phase, shift) of a

That needs k times less memory than unfolding both axes. Rows of taps that fall outside the image are left out of the
product by slicing; for the width, columns that see the image through the same taps (Geometry.runs) have an array of
their own. So no product is spent on padding: for a 5 x 5 kernel over 4 x 4 small pixels that would be 28 % of them.
"""

import math
from itertools import product

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minivae.ops.numpy_norm import batch_moments
from minivae.ops.threads import parallel, scratch, split

IMAGES = 32  # of one thread's piece: more would hardly speed up its products


def im2col(x, g, buffers):
    """The windows of x (N, H, W, I) that conv and conv_dw multiply; `buffers` owns the memory.

    A list of (images, arrays): a slice of the batch, and for each run of columns an array (s, h, columns, n, taps, I).
    """
    s, channels = g.stride, x.shape[3]
    cols = [(images, [buffers(("cols", images.start, j.start), _unfolded(g, j, b, images, channels), x.dtype)
                      for j, b in g.runs])
            for images in split(len(x), IMAGES)]

    def work(task):
        images, arrays = task
        n, row, column, value = x.strides
        for (j, b), u in zip(g.runs, arrays, strict=True):
            for phase in range(s):
                corner = x[images, phase::s, j.start * s - g.left + b.start :]
                shape = corner.shape[1], *u.shape[2:4], u.shape[4] * channels  # taps and channels are one run of values
                u[phase, : shape[0]].reshape(shape)[...] = as_strided(corner, shape, (s * row, s * column, n, value))

    parallel(work, cols)
    return cols


def conv(cols, w, g, y, moments=None):
    """y (N, h, w, O) = im2col(x) @ w, with w (k, k, I, O)."""

    def work(task):
        images, arrays = task
        for (j, b), u in zip(g.runs, arrays, strict=True):
            total = scratch("small", (*u.shape[1:4], w.shape[3]), y.dtype)
            for tap, phase, small, big in g.row_taps:
                _product(_matrix(u[phase, big], 2), _matrix(w[tap, b]), _matrix(total[small]), add=tap != g.top)
            y[images, :, j] = total.transpose(2, 0, 1, 3)

    parallel(work, cols)
    if moments is not None:
        batch_moments(y, moments)


def conv_dx(dy, w, g, dx, moments=None):
    """dx (N, H, W, I) = col2im(dy @ w^T): the adjoint of conv in x, and a transposed convolution's forward."""
    s = g.stride

    def work(images):
        dx[images] = 0
        for j, b in g.runs:
            moved = dy[images, :, j].transpose(1, 2, 0, 3)
            small = scratch("small", moved.shape, dy.dtype)
            np.copyto(small, moved)
            u = scratch("big", _unfolded(g, j, b, images, w.shape[2]), dy.dtype)
            covered = {}  # phase: its big rows that the nearest tap row sees; the others see fewer
            for tap, phase, rows, big in g.row_taps:
                _product(_matrix(small[rows]), _matrix(w[tap, b]).T, _matrix(u[phase, big], 2), add=phase in covered)
                covered.setdefault(phase, big)
            for phase, big in covered.items():
                rows = dx[images, phase::s][:, big]
                for tap in range(u.shape[4]):
                    first = j.start * s - g.left + b.start + tap
                    rows[:, :, first : first + s * (u.shape[2] - 1) + 1 : s] += (
                        u[phase, big, :, :, tap].transpose(2, 0, 1, 3))

    parallel(work, split(len(dx), IMAGES))
    if moments is not None:
        batch_moments(dx, moments)


def conv_dw(cols, dy, g, dw):
    """dw (k, k, I, O) = im2col(x)^T @ dy: a task sums over all images, for one row of taps and half of the outputs."""
    runs = [(images, j, b, u) for images, arrays in cols for (j, b), u in zip(g.runs, arrays, strict=True)]
    small = [scratch(("dy", i), (*u.shape[1:4], dw.shape[3]), dw.dtype) for i, (*_, u) in enumerate(runs)]

    def move(i):
        images, j, *_ = runs[i]
        np.copyto(small[i], dy[images, :, j].transpose(1, 2, 0, 3))

    def work(task):
        (tap, phase, rows, big), part = task
        for (*_, b, u), moved in zip(runs, small, strict=True):
            _product(_matrix(u[phase, big], 2).T, _matrix(moved[rows])[:, part], _matrix(dw[tap, b])[:, part], add=True)

    dw.fill(0)
    parallel(move, range(len(runs)))
    parallel(work, list(product(g.row_taps, split(dw.shape[3], -(-dw.shape[3] // 2)))))


def _unfolded(g, columns, taps, images, channels):
    """The shape of the windows of a run."""
    return g.stride, g.out_height, *(s.stop - s.start for s in (columns, images, taps)), channels


def _matrix(x, columns=1):
    """x as a matrix, its last `columns` axes being the columns."""
    return x.reshape(-1, math.prod(x.shape[-columns:]))


def _product(a, b, out, add):
    if add:
        out += np.matmul(a, b, out=scratch("product", out.shape, out.dtype))
    else:
        np.matmul(a, b, out=out)
