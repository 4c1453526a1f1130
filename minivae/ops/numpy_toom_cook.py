"""The three convolutions of plain.py with fewer multiplications, for many channels.

The coefficients of the product of two polynomials are a convolution, and a polynomial of n coefficients is known by its
values at n points: multiply values, not coefficients. Along a row of the image, a tile of four small pixels s, r taps w
and the 3 + r big pixels b that they meet, n = 3 + r points (infinity among them, where the value is the highest
coefficient):

    sum_ia s_i w_a b_(i+a) = sum_t (S s)_t (G w)_t (B b)_t      S, G: powers of the points      B: inverse, transposed

Each convolution is this form's derivative in one of its three arguments, so the three share their three matrices:

    conv: s = S^T ((B b) (G w))      conv_dx: b = B^T ((S s) (G w))      conv_dw: w = G^T ((S s) (B b))

With channels the product at a point is a product of matrices. At stride s every s-th tap meets every s-th big column: a
phase. A 5 x 5 kernel of stride 2 takes 5 + 6 products for a tile and a row of the kernel instead of 20. The rows of the
kernel are taken one after the other: the form in both directions needs still fewer products, but of matrices so small
and of so many weights that they take longer. Values of both signs cancel, which costs digits: in float32 the relative
error is below 1e-6, and that of the plain convolutions is 3e-7.
Source: Toom (1963), Cook (1966); for networks Lavin and Gray, arXiv 1509.09308.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from minivae.ops.geometry import Geometry
from minivae.ops.numpy_conv import add_product
from minivae.ops.threads import parallel, scratch, split

TILE = 4  # small columns of a tile
POINTS = (0, 1, -1, -2, 1 / 2)  # and infinity: these lose the fewest digits
TAPS = 3  # of a phase, at most, for so many points
LEAST_CHANNELS = 32  # channels of the big side, below which the products are too small to pay for the transforms
PIECE_IMAGES = 64
PIECE_CHANNELS = 64  # of one thread's piece, as the rows
PIECE_ROWS = 2


def suits(g, channels):
    """Whether it is faster: with enough channels on the big side, and two thirds of the multiplications or less."""
    points = g.stride * (TILE - 1) + g.kernel
    return channels >= LEAST_CHANNELS and -(-g.kernel // g.stride) <= TAPS and 3 * points <= 2 * TILE * g.kernel


def im2col(x, g, buffers):
    """B b of every tile: a list of (images, array (points, row phases, h, tiles, n, I))."""
    form = _form(g, x.dtype)
    cols = [(images, buffers(("points", images.start), form.big_shape(images, x.shape[3]), x.dtype))
            for images in split(len(x), PIECE_IMAGES)]

    def work(task):
        (images, values), phase, row, part = task
        pixels = x[images, row :: g.stride][:, part]
        out = values[phase.points, row, part.start : part.start + pixels.shape[1]]
        np.matmul(phase.B, _flat(_gather(pixels, phase.big, form.tiles)), out=_flat(out))

    parallel(work, list(product(cols, form.phases, range(g.stride), split(g.out_height, PIECE_ROWS))))
    return cols


def conv(cols, w, g, y):
    """y = S^T ((B b) (G w))."""
    form = _form(g, y.dtype)
    for images, values in cols:
        products = scratch("points", form.small_shape(images, y.shape[3]), y.dtype)

        def multiply(task, values=values, products=products):
            point, taps, G = task
            for tap, row, small, big in g.row_taps:
                add_product(_pixels(values[point, row, big]), _weights(w[tap, taps], G),
                            _pixels(products[point, small]), add=tap != g.top)

        def finish(rows, images=images, products=products):
            tiles = scratch("tiles", (TILE, *products[0, rows].shape), y.dtype)
            np.matmul(form.S.T, _flat(products[:, rows]), out=_flat(tiles))
            for tile, (some, columns) in zip(tiles, form.small, strict=True):
                y[images, rows, columns] = tile[:, some].transpose(2, 0, 1, 3)

        parallel(multiply, form.points)
        parallel(finish, split(g.out_height, PIECE_ROWS))


def conv_dx(dy, w, g, dx):
    """dx = B^T ((S s) (G w))."""
    form = _form(g, dy.dtype)
    for images in split(len(dx), PIECE_IMAGES):
        values = _small_values(dy[images], form)
        products = scratch("products", form.big_shape(images, dx.shape[3]), dy.dtype)

        def multiply(task, values=values, products=products):
            point, taps, G = task
            for tap, row, small, big in g.row_taps:
                add_product(_pixels(values[point, small]), _weights(w[tap, taps], G).T,
                            _pixels(products[point, row, big]), add=tap != g.nearest[row])

        def finish(task, images=images, products=products):
            row, part = task
            out = dx[images, row :: g.stride][:, part]
            out[...] = 0
            for phase in form.phases if row in g.nearest else []:
                values = products[phase.points, row, part][:, : out.shape[1]]
                tiles = scratch("tiles", values.shape, dy.dtype)
                np.matmul(phase.B.T, _flat(values), out=_flat(tiles))
                for tile, (some, columns) in zip(tiles, phase.big, strict=True):
                    out[:, :, columns] += tile[:, some].transpose(2, 0, 1, 3)

        parallel(multiply, form.points)
        parallel(finish, list(product(range(g.stride), split(g.out_height, PIECE_ROWS))))


def conv_dw(cols, dy, g, dw):
    """dw = G^T ((S s) (B b))."""
    form = _form(g, dy.dtype)
    for tap in set(range(g.kernel)) - {tap for tap, *_ in g.row_taps}:
        dw[tap] = 0
    for images, big_values in cols:
        small_values = _small_values(dy[images], form)

        def work(task, add=images.start > 0, big_values=big_values, small_values=small_values):
            phase, part = task
            for tap, row, small, big in g.row_taps:
                out = dw[tap, phase.taps, part]
                values = scratch("weights", (len(phase.G), *out.shape[1:]), dw.dtype)
                np.matmul(_stack(big_values[phase.points, row, big])[..., part].transpose(0, 2, 1),
                          _stack(small_values[phase.points, small]), out=values)
                add_product(phase.G.T, _flat(values), _flat(out), add)

        parallel(work, list(product(form.phases, split(dw.shape[2], PIECE_CHANNELS))))


def _weights(w, G):
    """G w (I, O) at one point, of w (taps, I, O)."""
    weights = scratch("weights", w.shape[1:], w.dtype)
    np.matmul(G, _flat(w), out=weights.reshape(-1))
    return weights


def _small_values(y, form):
    """S s (points, h, tiles, n, O) of y (n, h, w, O)."""
    values = scratch("points", (len(form.S), y.shape[1], form.tiles, len(y), y.shape[3]), y.dtype)

    def work(rows):
        np.matmul(form.S, _flat(_gather(y[:, rows], form.small, form.tiles)), out=_flat(values[:, rows]))

    parallel(work, split(y.shape[1], PIECE_ROWS))
    return values


def _gather(image, columns, tiles):
    """Those columns of all tiles (len(columns), rows, tiles, n, C), zero outside image (n, rows, W, C)."""
    n, rows, _, channels = image.shape
    gathered = scratch("tiles", (len(columns), rows, tiles, n, channels), image.dtype)
    for tile, (some, there) in zip(gathered, columns, strict=True):
        if some.stop - some.start < tiles:
            tile.fill(0)
        tile[:, some] = image[:, :, there].transpose(1, 2, 0, 3)
    return gathered


def _flat(x):
    return x.reshape(len(x), -1)


def _pixels(x):
    """x (rows, tiles, n, C) as a matrix (pixels, C)."""
    return x.reshape(-1, x.shape[-1])


def _stack(x):
    """x (points, rows, tiles, n, C) as matrices (points, pixels, C)."""
    return x.reshape(len(x), -1, x.shape[-1])


@dataclass(frozen=True)
class Phase:
    """A phase of columns: its place among the points, its taps (a slice of w), its G and B, its tiles' big columns."""

    points: slice
    taps: slice
    G: np.ndarray
    B: np.ndarray
    big: list


@dataclass(frozen=True)
class Form:
    """The form of a geometry: how many tiles a row has, its phases, S of all of them, the tiles' small columns."""

    g: Geometry
    tiles: int
    phases: list
    S: np.ndarray
    small: list

    @property
    def points(self):
        """What a product needs to know of its point: (its index, the taps of its phase, its row of G)."""
        return [(phase.points.start + i, phase.taps, row) for phase in self.phases for i, row in enumerate(phase.G)]

    def small_shape(self, images, channels):
        return len(self.S), self.g.out_height, self.tiles, images.stop - images.start, channels

    def big_shape(self, images, channels):
        return len(self.S), self.g.stride, *self.small_shape(images, channels)[1:]


@cache
def _form(g, dtype):
    tiles = -(-g.out_width // TILE)
    phases, s = [], []
    for first in range(min(g.stride, g.kernel)):
        taps = slice(first, None, g.stride)
        S, G, B = (matrix.astype(dtype) for matrix in _matrices(len(range(g.kernel)[taps])))
        start = sum(len(other) for other in s)
        big = [_there(first - g.left + i * g.stride, TILE * g.stride, g.width, tiles) for i in range(len(B))]
        phases.append(Phase(slice(start, start + len(B)), taps, G, B, big))
        s.append(S)
    return Form(g, tiles, phases, np.concatenate(s), [_there(i, TILE, g.out_width, tiles) for i in range(TILE)])


def _matrices(taps):
    """S (n, TILE), G (n, taps), B (n, n) with n = TILE + taps - 1."""
    n = TILE + taps - 1

    def values(coefficients):
        at_infinity = np.eye(coefficients)[-1:]
        return np.concatenate([np.vander(POINTS[: n - 1], coefficients, increasing=True), at_infinity])

    return values(TILE), values(taps), np.linalg.inv(values(n)).T


def _there(first, step, size, tiles):
    """Pixel `first` of tile 0 and every step-th of tiles 1, 2, ...: the tiles where it lies in range(size), and it."""
    start = max(-(first // step), 0)
    stop = max(min(-(-(size - first) // step), tiles), start)
    return slice(start, stop), slice(first + start * step, max(first + stop * step, 0), step)
