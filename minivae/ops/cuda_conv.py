"""The three convolutions and the three dense products on the GPU: the launches of kernels/product.cu.

Names and signatures are numpy_conv's and numpy_ops'. im2col is implicit: it returns x, in which the kernel finds the
windows. A dense product is the convolution of 1 x 1 images by a 1 x 1 kernel.
"""

from collections import namedtuple
from functools import cache

import numpy as np

from minivae.ops import cuda_module
from minivae.ops.geometry import Geometry

THREADS, STAGES = 128, 3  # as in operands.cu
LEVELS = 3  # of sum_pieces in tiles.cu: enough for 16^3 pieces
MOST_TAPS = 15  # along an edge: a window keeps its taps as bits of one word
LEAST_SHARE = 4  # units of work that are worth a block
POINT = Geometry(1, 1, 1, 1)

# Rows and columns of a block and of a warp; loads of 16 bytes, or of one value where channels do not come in fours;
# blocks per multiprocessor. LARGE keeps tensor cores busiest, MEDIUM has more blocks for small products, SCALAR takes
# any shape, NARROW is for the few columns of CONV_DX_ALL.
Tile = namedtuple("Tile", "rows columns warp_rows warp_columns vector blocks")
LARGE = Tile(128, 64, 64, 32, True, 2)
MEDIUM = Tile(64, 64, 32, 32, True, 3)
SCALAR = Tile(64, 32, 32, 16, False, 3)
NARROW = Tile(128, 16, 32, 16, True, 3)
OPERATIONS = ("CONV", "CONV_DX", "CONV_DW")


def _name(op, tensor, tile):
    flags = f"{tensor:d}, {tile.rows}, {tile.columns}, {tile.warp_rows}, {tile.warp_columns}, {tile.vector:d}"
    return f"product<{op}, {flags}>"


def _source(tensor, tiles):
    names = [_name(op, tensor, tile) for tile in tiles for op in OPERATIONS] + [_name("CONV_DX_ALL", tensor, NARROW)]
    return cuda_module.Source("window.cu", "operands.cu", "tiles.cu", "product.cu", names=names)


TENSOR = _source(True, (LARGE, MEDIUM, SCALAR))  # float32 as tf32
PLAIN = _source(False, (MEDIUM, SCALAR))  # float32, float64


def im2col(x, g, buffers):
    """The windows of x (N, H, W, I) that conv and conv_dw multiply: x, whose windows the kernel finds itself."""
    return x


def conv(cols, w, g, y, moments=None):
    """y (N, h, w, O) = im2col(x) @ w, with w (k, k, I, O)."""
    _product("CONV", cols, w, y, g, len(cols), w.shape[2], w.shape[3], moments)


def conv_dx(dy, w, g, dx, moments=None):
    """dx (N, H, W, I) = col2im(dy @ w^T): the adjoint of conv in x, and a transposed convolution's forward."""
    _product("CONV_DX", dy, w, dx, g, len(dy), w.shape[2], w.shape[3], moments)


def conv_dw(cols, dy, g, dw):
    """dw (k, k, I, O) = im2col(x)^T @ dy."""
    _product("CONV_DW", cols, dy, dw, g, len(cols), dw.shape[2], dw.shape[3])


def dense(x, w, y, moments=None):
    """y (N, O) = x (N, I) @ w (I, O)."""
    _product("CONV", x, w, y, POINT, len(x), *w.shape, moments)


def dense_dx(dy, w, dx):
    """dx (N, I) = dy (N, O) @ w^T."""
    _product("CONV_DX", dy, w, dx, POINT, len(dy), *w.shape)


def dense_dw(x, dy, dw):
    """dw (I, O) = x^T @ dy."""
    _product("CONV_DW", x, dy, dw, POINT, len(x), *dw.shape)


def _product(op, a, b, out, g, images, inputs, outputs, moments=None):
    dtype = np.dtype(out.dtype)
    aligned = all(cuda_module.address(array) % 16 == 0 for array in (a, b))
    plan = _plan(op, dtype, g, images, inputs, outputs, aligned, moments is not None,
                 cuda_module.tensor_cores(dtype), cuda_module.multiprocessors)
    scratch = cuda_module.scratch
    tiles = scratch("tiles", (plan.row_tiles, 2, plan.columns), dtype) if moments is not None else None
    done = scratch("columns done", (plan.column_tiles,), np.uint32) if moments is not None else None
    plan.source.launch(plan.name, dtype, plan.grid, THREADS, a, b, out, moments,
                       scratch("partial", (plan.slots,), dtype), scratch("counters", (plan.counters,), np.uint32),
                       tiles, done, images, g.height, g.width, inputs, g.out_height, g.out_width, outputs, g.kernel,
                       g.stride, g.top, g.left, plan.share, plan.units, plan.row_tiles, shared=plan.shared)


Plan = namedtuple("Plan", "source name grid share units columns row_tiles column_tiles slots counters shared")


@cache
def _plan(op, dtype, g, images, inputs, outputs, aligned, moments, tensor, multiprocessors):
    """What product.cu is launched with, of tile and shares, for these shapes."""
    size = dtype.itemsize
    if g.kernel > MOST_TAPS:
        raise ValueError(f"a kernel of {g.kernel} x {g.kernel}: at most {MOST_TAPS} x {MOST_TAPS}")
    if images * max(g.height * g.width * inputs, g.out_height * g.out_width * outputs) >= 2**31:
        raise ValueError(f"a batch of {images} images with more than 2^31 values: take a smaller one")
    lanes = 16 // size
    patch = g.stride**2 * inputs
    vector = aligned and outputs % lanes == 0 and (op == "CONV_DX" or inputs % lanes == 0)
    if op == "CONV_DX" and patch <= NARROW.columns and g.stride > 1 and vector and not moments:
        op, tile = "CONV_DX_ALL", NARROW
    elif not vector:
        tile = SCALAR
    else:
        large = tensor and _units(op, size, g, images, inputs, outputs, LARGE)
        tile = LARGE if large and large[0] >= LEAST_SHARE * LARGE.blocks * multiprocessors else MEDIUM
    units, per_tile, row_tiles, columns = _units(op, size, g, images, inputs, outputs, tile)
    share = max(-(-units // (tile.blocks * multiprocessors)), LEAST_SHARE)
    if len(per_tile) == 1 and per_tile[0] <= LEAST_SHARE:
        share = per_tile[0]  # short tiles are not cut
    grid = -(-units // share)
    most = max((LARGE, MEDIUM, SCALAR, NARROW), key=lambda t: t.blocks * t.rows * t.columns)  # one scratch for all
    slots = 2 * multiprocessors * most.blocks * most.rows * most.columns
    return Plan(TENSOR if tensor else PLAIN, _name(op, tensor, tile), grid, share, units, columns, row_tiles,
                -(-columns // tile.columns), slots, LEVELS * 2 * grid, _shared(op, size, tile))


def _units(op, size, g, images, inputs, outputs, tile):
    """(units in all, units per tile of each class, row tiles, columns), as product.cu counts them."""
    depth, small = 128 // size, images * g.out_height * g.out_width
    if op == "CONV":
        columns, classes = outputs, [(small, g.kernel**2 * inputs)]
    elif op == "CONV_DW":
        columns, classes = outputs, [(g.kernel**2 * inputs, small)]
    elif op == "CONV_DX_ALL":
        s, k = g.stride, g.kernel
        reach = [(s - 1 + before) // s + (k - 1 - before) // s + 1 for before in (g.top, g.left)]
        columns, classes = s**2 * inputs, [(small, reach[0] * reach[1] * outputs)]
    else:
        columns, classes = inputs, []
        for a in range(g.stride):
            for b in range(g.stride):
                pixels, taps = images, 1
                for first, before, length in ((a, g.top, g.height), (b, g.left, g.width)):
                    pixels *= -(-max(length - (first - before) % g.stride, 0) // g.stride)
                    taps *= -(-max(g.kernel - first, 0) // g.stride)
                classes.append((pixels, taps * outputs))
    per_tile = tuple(max(-(-contracted // depth), 1) for _, contracted in classes)
    row_tiles = [-(-rows // tile.rows) for rows, _ in classes]
    column_tiles = -(-columns // tile.columns)
    units = sum(r * column_tiles * p for r, p in zip(row_tiles, per_tile, strict=True))
    return units, per_tile, sum(row_tiles), columns


def _shared(op, size, tile):
    """Bytes of the buffers: A and B by STAGES, each line padded as Tile in product.cu has it."""
    depth = 128 // size

    def values(by_row, length):
        return length * (depth + 16 // size) if by_row else depth * (length + 32 // size)

    a = values(op != "CONV_DW", tile.rows)
    b = values(op in ("CONV_DX", "CONV_DX_ALL"), tile.columns)
    return STAGES * (a + b) * size
