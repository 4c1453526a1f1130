"""The three convolutions of plain.py on all cores, each one product of matrices, a piece of the batch at a time.

With w as a matrix (k k I, O):

    conv: y = im2col(x) w      conv_dx: dx = col2im(dy w^T)      conv_dw: dw = im2col(x)^T dy
"""

import math

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minivae.ops.threads import parallel, scratch, split

PIECE_IMAGES = 16  # of one thread's piece: more would hardly speed up its products
PARTIAL_SUMS = 8  # of conv_dw, at most: what is added up at the same time


def im2col(x, g, buffers):
    """The windows (N, h, w, k, k I) of x (N, H, W, I); `buffers` owns the memory."""
    s = g.stride
    cols = buffers("cols", (len(x), g.out_height, g.out_width, g.kernel, g.kernel * x.shape[3]), x.dtype)

    def work(images):
        padded = _padded(x[images].shape, g, x.dtype)
        _inside(padded, g)[...] = x[images]
        n, row, column, value = padded.strides
        cols[images] = as_strided(padded, cols[images].shape, (n, s * row, s * column, row, value))

    parallel(work, split(len(x), PIECE_IMAGES))
    return cols


def conv(cols, w, g, y):
    def work(images):
        np.matmul(_rows(cols[images], 2), _rows(w), out=_rows(y[images]))

    parallel(work, split(len(y), PIECE_IMAGES))


def conv_dx(dy, w, g, dx):
    s = g.stride
    k = g.kernel
    channels = w.shape[2]

    def work(images):
        small = dy[images]
        cols = scratch("cols", (*small.shape[:3], k, k * channels), dy.dtype)
        np.matmul(_rows(small), _rows(w).T, out=_rows(cols, 2))
        padded = _padded(dx[images].shape, g, dx.dtype)
        pixels = padded.reshape(len(small), -1, s, padded.shape[2] // s, s * channels)  # s columns are one run
        for a in range(k):
            rows = pixels[:, a // s : a // s + g.out_height, a % s]
            for b in range(0, k, s):
                taps = cols[:, :, :, a, b * channels : (b + s) * channels]
                rows[:, :, b // s : b // s + g.out_width, : taps.shape[3]] += taps
        dx[images] = _inside(padded, g)

    parallel(work, split(len(dx), PIECE_IMAGES))


def conv_dw(cols, dy, g, dw):
    """Several sums over parts of the batch at once, which are then added."""
    pieces = split(len(dy), PIECE_IMAGES)
    sums = [dw, *scratch("dw", (min(PARTIAL_SUMS, len(pieces)) - 1, *dw.shape), dw.dtype)]

    def work(i):
        for images in pieces[i :: len(sums)]:
            add_product(_rows(cols[images], 2).T, _rows(dy[images]), _rows(sums[i]), add=images != pieces[i])

    def add(tap):
        for other in sums[1:]:
            dw[tap] += other[tap]

    parallel(work, range(len(sums)))
    parallel(add, range(len(dw)))


def add_product(a, b, out, add):
    """out = a @ b, or out += a @ b; a and b matrices or stacks of them."""
    if add:
        out += np.matmul(a, b, out=scratch("product", out.shape, out.dtype))
    else:
        np.matmul(a, b, out=out)


def _rows(x, columns=1):
    """x as a matrix, its last `columns` axes being the columns."""
    return x.reshape(-1, math.prod(x.shape[-columns:]))


def _padded(shape, g, dtype):
    """Zeros around and in place of images (n, H, W, C): every window is inside."""
    padded = scratch("padded", (shape[0], *g.padded, shape[3]), dtype)
    padded.fill(0)
    return padded


def _inside(padded, g):
    return padded[:, g.top : g.top + g.height, g.left : g.left + g.width]
