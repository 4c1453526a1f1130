"""The three convolutions in NumPy, as one product for each row of the kernel; see numpy_ops for the shapes' letters.

im2col unfolds x along the width only. Tap row a of the kernel meets big rows s i - top + a: for stride s these are
every s-th row, so an unfolded x kept as s phases of rows, rows outermost, holds what tap row a sees in one piece:

    cols (s, ceil(H / s), w, n, k I)     conv: y[i] = sum_a cols[phase, i + shift] @ w[a]     (phase, shift) of a

That needs k times less memory than unfolding both axes. Rows of taps that fall outside the image are left out of the
product by slicing; for the width, columns that see the image through the same taps (Geometry.runs) have an array of
their own. So no product is spent on padding: for a 5 x 5 kernel over 4 x 4 small pixels that would be 28 % of them.
"""

import math

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minivae.ops.threads import parallel, scratch, split

IMAGES = 16  # of one thread's piece: more would hardly speed up its products
SUMS = 8  # of conv_dw, at most


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


def conv(cols, w, g, y):
    """y (N, h, w, O) = im2col(x) @ w, with w (k, k, I, O)."""

    def work(task):
        images, arrays = task
        for (j, b), u in zip(g.runs, arrays, strict=True):
            total = scratch("small", (*u.shape[1:4], w.shape[3]), y.dtype)
            for tap, phase, small, big in g.row_taps:
                add_product(_matrix(u[phase, big], 2), _matrix(w[tap, b]), _matrix(total[small]), add=tap != g.top)
            y[images, :, j] = total.transpose(2, 0, 1, 3)

    parallel(work, cols)


def conv_dx(dy, w, g, dx):
    """dx (N, H, W, I) = col2im(dy @ w^T): the adjoint of conv in x, and a transposed convolution's forward."""
    s = g.stride

    def work(images):
        dx[images] = 0
        for j, b in g.runs:
            small = _rows_first(dy[images, :, j])
            u = scratch("big", _unfolded(g, j, b, images, w.shape[2]), dy.dtype)
            for tap, phase, rows, big in g.row_taps:
                add_product(_matrix(small[rows]), _matrix(w[tap, b]).T, _matrix(u[phase, big], 2),
                            add=tap != g.nearest[phase])
            for phase in g.nearest:
                rows = dx[images, phase::s]
                for tap in range(u.shape[4]):
                    first = j.start * s - g.left + b.start + tap
                    rows[:, :, first : first + s * (u.shape[2] - 1) + 1 : s] += (
                        u[phase, : rows.shape[1], :, :, tap].transpose(2, 0, 1, 3))

    parallel(work, split(len(dx), IMAGES))


def conv_dw(cols, dy, g, dw):
    """dw (k, k, I, O) = im2col(x)^T @ dy: sums over parts of the batch at once, then added."""
    sums = [dw, *scratch("dw", (min(SUMS, len(cols)) - 1, *dw.shape), dw.dtype)]

    def work(i):
        sums[i].fill(0)
        for images, arrays in cols[i :: len(sums)]:
            for (j, b), u in zip(g.runs, arrays, strict=True):
                small = _rows_first(dy[images, :, j])
                for tap, phase, rows, big in g.row_taps:
                    add_product(_matrix(u[phase, big], 2).T, _matrix(small[rows]), _matrix(sums[i][tap, b]), add=True)

    def add(part):
        for other in sums[1:]:
            dw[part] += other[part]

    parallel(work, range(len(sums)))
    parallel(add, split(len(dw), 1))


def _unfolded(g, columns, taps, images, channels):
    """The shape of the windows of a run."""
    return g.stride, g.out_height, *(s.stop - s.start for s in (columns, images, taps)), channels


def _rows_first(y):
    """A copy of y (n, h, w, O) as (h, w, n, O)."""
    moved = y.transpose(1, 2, 0, 3)
    copy = scratch("small", moved.shape, y.dtype)
    np.copyto(copy, moved)
    return copy


def _matrix(x, columns=1):
    """x as a matrix, its last `columns` axes being the columns."""
    return x.reshape(-1, math.prod(x.shape[-columns:]))


def add_product(a, b, out, add):
    """out = a @ b, or out += a @ b; a and b matrices or stacks of them."""
    if add:
        out += np.matmul(a, b, out=scratch("product", out.shape, out.dtype))
    else:
        np.matmul(a, b, out=out)
