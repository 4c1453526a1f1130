"""The three convolutions in NumPy with fewer multiplications, for many channels; see numpy_ops for the shapes' letters.

The coefficients of the product of two polynomials are a convolution, and a polynomial of n coefficients is known by its
values at n points: multiply values, not coefficients. For one axis, four small pixels s, r taps w and the 3 + r big
pixels b that they meet, n = 3 + r points (infinity among them, where the value is the highest coefficient):

    sum_ia s_i w_a b_(i+a) = sum_t (S s)_t (G w)_t (B b)_t      S, G: powers of the points      B: inverse, transposed

Each convolution is this form's derivative in one of its three arguments, so the three share their three matrices:

    conv: s = S^T ((B b) (G w))      conv_dx: b = B^T ((S s) (G w))      conv_dw: w = G^T ((S s) (B b))

At stride s every s-th tap meets every s-th big pixel: a convolution is s x s convolutions of stride 1, one for each
pair of phases. In two dimensions the matrices are Kronecker products, and with channels the product at each point is a
matrix product. A 5 x 5 kernel of stride 2 takes (5 + 6)^2 = 121 products for 4 x 4 small pixels, not 400. Large values
of both signs cancel, which costs digits: in float32 the relative error is about 2e-6 where it was 3e-7.
Source: Toom (1963), Cook (1966); for networks Lavin and Gray, arXiv 1509.09308.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from minivae.ops.threads import parallel, scratch, split

TILE = 4  # small pixels of a tile in each direction
POINTS = (0, 1, -1, -2, 1 / 2)  # and infinity: these lose the fewest digits
TAPS = 3  # of a phase, at most, for so many points
LEAST = 32  # channels of the big side, below which the products are too small to pay for the transforms
VALUES = 2**13  # tiles times channels of the big side in one piece of the batch
IMAGES, CHANNELS = 16, 64  # of one thread's piece


def suits(g, channels):
    """Whether it is faster: with enough channels on the big side, and a third of the multiplications or less."""
    points = g.stride * (TILE - 1) + g.kernel
    return channels >= LEAST and -(-g.kernel // g.stride) <= TAPS and 3 * points**2 <= (TILE * g.kernel) ** 2


def im2col(x, g, buffers):
    """B b of every tile: a list of (images, array (points, n, rows of tiles, columns of tiles, I))."""
    form = _form(g, x.dtype)
    cols = [(images, buffers(("points", images.start), form.shape(images, x.shape[3]), x.dtype))
            for images in form.pieces(len(x), x.shape[3])]

    def work(task):
        (images, values), pair, part = task
        tiles = _gather(x[images][part], pair.big, form.tiles)
        np.matmul(pair.B, _flat(tiles), out=_flat(values[pair.points, part]))

    parallel(work, [(piece, pair, part) for piece in cols for pair in form.pairs
                    for part in split(piece[1].shape[1], IMAGES)])
    return cols


def conv(cols, w, g, y):
    """y = S^T ((B b) (G w))."""
    form = _form(g, y.dtype)
    for images, values in cols:
        products = scratch("points", form.shape(images, y.shape[3]), y.dtype)

        def multiply(task, values=values, products=products):
            pair, part = task
            weights = _weights(w[..., part], pair)
            np.matmul(_rows(values[pair.points]), weights, out=_rows(products[pair.points])[..., part])

        def finish(part, images=images, products=products):
            tiles = scratch("tiles", (len(form.small), *products[0, part].shape), y.dtype)
            np.matmul(form.S.T, _flat(products[:, part]), out=_flat(tiles))
            for tile, ((row_tiles, rows), (column_tiles, columns)) in zip(tiles, form.small, strict=True):
                y[images][part, rows, columns] = tile[:, row_tiles, column_tiles]

        parallel(multiply, list(product(form.pairs, split(y.shape[3], CHANNELS))))
        parallel(finish, split(len(y[images]), IMAGES))


def conv_dx(dy, w, g, dx):
    """dx = B^T ((S s) (G w))."""
    form = _form(g, dy.dtype)
    for images in form.pieces(*dx.shape[::3]):
        values = _small_values(dy[images], form)
        products = scratch("products", form.shape(images, dx.shape[3]), dy.dtype)

        def multiply(task, values=values, products=products):
            pair, part = task
            weights = _weights(w[:, :, part], pair)
            np.matmul(_rows(values[pair.points]), weights.transpose(0, 2, 1),
                      out=_rows(products[pair.points])[..., part])

        def finish(part, images=images, products=products):
            dx[images][part] = 0
            for pair in form.pairs:
                tiles = scratch("tiles", (len(pair.big), *products[0, part].shape), dy.dtype)
                np.matmul(pair.B.T, _flat(products[pair.points, part]), out=_flat(tiles))
                for tile, ((row_tiles, rows), (column_tiles, columns)) in zip(tiles, pair.big, strict=True):
                    dx[images][part, rows, columns] += tile[:, row_tiles, column_tiles]

        parallel(multiply, list(product(form.pairs, split(dx.shape[3], CHANNELS))))
        parallel(finish, split(len(dx[images]), IMAGES))


def conv_dw(cols, dy, g, dw):
    """dw = G^T ((S s) (B b))."""
    form = _form(g, dy.dtype)
    for images, big in cols:
        small = _small_values(dy[images], form)

        def work(task, images=images, big=big, small=small):
            pair, part = task
            out = dw[pair.taps][:, :, part]
            b = _rows(big[pair.points])[..., part]
            values = scratch("weights", (len(b), *out.shape[2:]), dw.dtype)
            np.matmul(b.transpose(0, 2, 1), _rows(small[pair.points]), out=values)
            taps = np.matmul(pair.G.T, _flat(values), out=scratch("taps", (pair.G.shape[1], values[0].size), dw.dtype))
            if images.start == 0:
                np.copyto(out, taps.reshape(out.shape))
            else:
                out += taps.reshape(out.shape)

        parallel(work, list(product(form.pairs, split(dw.shape[2], CHANNELS))))


def _weights(w, pair):
    """G w (points, I, O) of a pair's taps."""
    w = w[pair.taps]
    taps = scratch("taps", w.shape, w.dtype)
    np.copyto(taps, w)
    weights = scratch("weights", (len(pair.G), *w.shape[2:]), w.dtype)
    np.matmul(pair.G, taps.reshape(pair.G.shape[1], -1), out=_flat(weights))
    return weights


def _small_values(y, form):
    """S s (points, n, rows of tiles, columns of tiles, O) of y (n, h, w, O)."""
    values = scratch("points", (len(form.S), len(y), *form.tiles, y.shape[3]), y.dtype)

    def work(part):
        np.matmul(form.S, _flat(_gather(y[part], form.small, form.tiles)), out=_flat(values[:, part]))

    parallel(work, split(len(y), IMAGES))
    return values


def _gather(image, pixels, tiles):
    """The pixels of all tiles (len(pixels), n, rows of tiles, columns of tiles, C), zero outside the image."""
    gathered = scratch("tiles", (len(pixels), len(image), *tiles, image.shape[3]), image.dtype)
    for tile, ((row_tiles, rows), (column_tiles, columns)) in zip(gathered, pixels, strict=True):
        seen = image[:, rows, columns]
        if seen.shape != tile.shape:
            tile.fill(0)
        tile[:, row_tiles, column_tiles] = seen
    return gathered


def _flat(x):
    return x.reshape(len(x), -1)


def _rows(x):
    """x (points, n, rows, columns, C) as matrices (points, tiles, C)."""
    return x.reshape(len(x), -1, x.shape[-1])


@dataclass(frozen=True)
class Pair:
    """A pair of phases: its place among the points, its taps (two slices of w), its G and B, its tiles' big pixels."""

    points: slice
    taps: tuple
    G: np.ndarray
    B: np.ndarray
    big: list


@dataclass(frozen=True)
class Form:
    """The form of a geometry: how many tiles a small image has, S of all pairs of phases, the tiles' small pixels."""

    tiles: tuple
    pairs: list
    S: np.ndarray
    small: list

    def shape(self, images, channels):
        return len(self.S), images.stop - images.start, *self.tiles, channels

    def pieces(self, count, channels):
        """A batch of `count` images as slices."""
        return split(count, VALUES // (self.tiles[0] * self.tiles[1] * channels))


@cache
def _form(g, dtype):
    tiles = -(-g.out_height // TILE), -(-g.out_width // TILE)
    pairs, s = [], []
    for rows, columns in product(_phases(g, g.top, g.height, tiles[0]), _phases(g, g.left, g.width, tiles[1])):
        S, G, B = (np.kron(a, b).astype(dtype) for a, b in zip(rows.matrices, columns.matrices, strict=True))
        start = sum(len(other) for other in s)
        pairs.append(Pair(slice(start, start + len(S)), (rows.taps, columns.taps), G, B,
                          list(product(rows.big, columns.big))))
        s.append(S)
    small = product(*([_seen(i, TILE, size, count) for i in range(TILE)]
                      for size, count in zip((g.out_height, g.out_width), tiles, strict=True)))
    return Form(tiles, pairs, np.concatenate(s), list(small))


@dataclass(frozen=True)
class Phase:
    """The same for one axis: a slice of taps, the matrices S, G and B, and the big pixels of the tiles."""

    taps: slice
    matrices: tuple
    big: list


def _phases(g, before, size, tiles):
    for first in range(min(g.stride, g.kernel)):
        taps = slice(first, None, g.stride)
        matrices = _matrices(len(range(g.kernel)[taps]))
        yield Phase(taps, matrices, [_seen(first - before + i * g.stride, TILE * g.stride, size, tiles)
                                     for i in range(len(matrices[2]))])


def _matrices(taps):
    """S (n, TILE), G (n, taps), B (n, n) with n = TILE + taps - 1."""
    n = TILE + taps - 1

    def values(coefficients):
        at_infinity = np.eye(coefficients)[-1:]
        return np.concatenate([np.vander(POINTS[: n - 1], coefficients, increasing=True), at_infinity])

    return values(TILE), values(taps), np.linalg.inv(values(n)).T


def _seen(first, step, size, tiles):
    """Pixel `first` of tile 0 and every step-th of tiles 1, 2, ...: the tiles where it lies in range(size), and it."""
    start = max(-(first // step), 0)
    stop = max(min(-(-(size - first) // step), tiles), start)
    return slice(start, stop), slice(first + start * step, max(first + stop * step, 0), step)
