"""The three convolutions and the three dense products on the GPU: launches of kernels/product.cu.

im2col stores nothing: it returns x, in which the kernel finds the windows. A dense product is the convolution of 1 x 1
images by a 1 x 1 kernel.
"""

from collections import namedtuple
from functools import cache

import numpy as np

from minivae.ops import cuda_module
from minivae.ops.geometry import Geometry

THREADS = 128  # of a block
STAGES = 3  # buffers in shared memory, each of one unit
OTHER_SHARED_BYTES = 7 * 1024  # of a block: its sums, and the KB that the system takes
UNIT_BYTES = 128  # of the contraction, in each row of A and column of B: what a block multiplies at a time
ALONG_PAD_BYTES = 16  # after each line of a buffer that lies along the contraction
ACROSS_PAD_BYTES = 32  # after each line that lies across it
RADIX = 16  # pieces of a tile that one block adds up
LEVELS = 3  # of such sums: enough for RADIX**3 pieces
MOMENTS_RADIX = 64  # tiles whose moments one block merges
TAP_BITS = 16  # a window keeps its tap rows in one half of a 32-bit word, its tap columns in the other
LEAST_SHARE = 4  # units of work that are worth a block
POINT = Geometry(1, 1, 1, 1)

# Rows and columns of a block and of a warp; loads of 16 bytes, or of one value where channels do not come in fours;
# blocks per multiprocessor that its registers allow. LARGE keeps tensor cores busiest, MEDIUM has more blocks for small
# products, SCALAR takes any shape, WIDE is for many pixels of 3 channels, whose single values would be copied into
# several SCALAR tiles, NARROW for the few columns of CONV_DX_ALL. A MEDIUM tile of doubles takes the registers of a
# LARGE one.
Tile = namedtuple("Tile", "rows columns warp_rows warp_columns vector blocks")
LARGE = Tile(128, 64, 64, 32, True, 2)
MEDIUM = Tile(64, 64, 32, 32, True, 3)
MEDIUM_DOUBLE = MEDIUM._replace(blocks=2)
SCALAR = Tile(64, 32, 32, 16, False, 3)
WIDE = LARGE._replace(vector=False)
NARROW = Tile(128, 16, 32, 16, True, 3)
OPERATIONS = ("CONV", "CONV_DX", "CONV_DW")
OF_TILE = {WIDE: ("CONV", "CONV_DW"), NARROW: ("CONV_DX_ALL",)}  # the others take all three


def _name(op, tensor, tile):
    return f"product<{op}, {', '.join(str(int(value)) for value in (tensor, *tile))}>"


def _source(tensor, tiles):
    names = [_name(op, tensor, tile) for tile in tiles for op in OF_TILE.get(tile, OPERATIONS)]
    return cuda_module.Source("window.cu", "operands.cu", "tiles.cu", "product.cu", names=names, THREADS=THREADS,
                              STAGES=STAGES, UNIT_BYTES=UNIT_BYTES, ALONG_PAD_BYTES=ALONG_PAD_BYTES,
                              ACROSS_PAD_BYTES=ACROSS_PAD_BYTES, RADIX=RADIX, LEVELS=LEVELS,
                              MOMENTS_RADIX=MOMENTS_RADIX, TAP_BITS=TAP_BITS)


TENSOR = _source(True, (LARGE, MEDIUM, SCALAR, WIDE, NARROW))  # float32 as tf32
SINGLE = _source(False, (MEDIUM, SCALAR, NARROW))  # float32
DOUBLE = _source(False, (MEDIUM_DOUBLE, SCALAR, NARROW))  # float64


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
                 cuda_module.tensor_cores(dtype), cuda_module.multiprocessors, cuda_module.shared_memory)
    scratch = cuda_module.scratch
    tiles = tile_counters = None
    if moments is not None:
        tiles = scratch("tiles", (plan.row_tiles, 3, plan.columns), dtype)
        tile_counters = scratch("tile counters", (plan.column_tiles, plan.row_tiles + LEVELS), np.uint32)
    plan.source.launch(plan.name, dtype, plan.grid, THREADS, a, b, out, moments,
                       scratch("partial", (plan.slots,), dtype), scratch("counters", (plan.counters,), np.uint32),
                       tiles, tile_counters, images, g.height, g.width, inputs, g.out_height, g.out_width, outputs,
                       g.kernel, g.stride, g.top, g.left, plan.share, plan.units, plan.row_tiles, shared=plan.shared)


Plan = namedtuple("Plan", "source name grid share units columns row_tiles column_tiles slots counters shared")


@cache
def _plan(op, dtype, g, images, inputs, outputs, aligned, moments, tensor, multiprocessors, shared_memory):
    """What product.cu is launched with, of tile and shares, for these shapes."""
    size = dtype.itemsize
    if g.kernel >= TAP_BITS:
        raise ValueError(f"a kernel of {g.kernel} x {g.kernel}: the largest is {TAP_BITS - 1} x {TAP_BITS - 1}")
    if images * max(g.height * g.width * inputs, g.out_height * g.out_width * outputs) >= 2**31:
        raise ValueError(f"a batch of {images} images with more than 2^31 values: take a smaller one")
    lanes = 16 // size
    vector = aligned and outputs % lanes == 0 and (op == "CONV_DX" or inputs % lanes == 0)
    if not vector:
        *_, row_tiles, columns = _units(op, size, g, images, inputs, outputs, SCALAR)
        tile = WIDE if tensor and op in OF_TILE[WIDE] and row_tiles > 1 and columns > SCALAR.columns else SCALAR
    elif op == "CONV_DX" and g.stride**2 * inputs <= NARROW.columns and not moments:
        op = "CONV_DX_ALL"
        tile = NARROW
    elif not tensor:
        tile = MEDIUM if size == 4 else MEDIUM_DOUBLE
    else:
        units, *_ = _units(op, size, g, images, inputs, outputs, LARGE)
        at_once = _blocks(op, size, LARGE, shared_memory) * multiprocessors
        tile = LARGE if units >= LEAST_SHARE * at_once else MEDIUM
    units, per_tile, row_tiles, columns = _units(op, size, g, images, inputs, outputs, tile)
    share = max(-(-units // (_blocks(op, size, tile, shared_memory) * multiprocessors)), LEAST_SHARE)
    if len(per_tile) == 1 and per_tile[0] <= LEAST_SHARE:
        share = per_tile[0]  # short tiles are not cut
    grid = -(-units // share)
    slots = max(t.blocks * t.rows * t.columns for t in (LARGE, MEDIUM, SCALAR, NARROW))  # one scratch for all
    source = TENSOR if tensor else SINGLE if size == 4 else DOUBLE
    return Plan(source, _name(op, tensor, tile), grid, share, units, columns, row_tiles, -(-columns // tile.columns),
                2 * multiprocessors * slots, LEVELS * 2 * grid, _shared(op, size, tile))


def _units(op, size, g, images, inputs, outputs, tile):
    """(units in all, units per tile of each class, row tiles, columns), as product.cu counts them.

    classes: (rows, length of the contraction) of each product that is one launch.
    """
    depth = UNIT_BYTES // size
    small = images * g.out_height * g.out_width
    columns = outputs
    if op == "CONV":
        classes = [(small, g.kernel**2 * inputs)]
    elif op == "CONV_DW":
        classes = [(g.kernel**2 * inputs, small)]
    elif op == "CONV_DX_ALL":
        columns = g.stride**2 * inputs
        tall, wide = ((g.stride - 1 + before) // g.stride + (g.kernel - 1 - before) // g.stride + 1
                      for before in (g.top, g.left))
        classes = [(small, tall * wide * outputs)]
    else:
        columns = inputs
        classes = [(images * height * width, tall * wide * outputs)
                   for height, tall in _phases(g, g.top, g.height) for width, wide in _phases(g, g.left, g.width)]
    per_tile = tuple(max(-(-contracted // depth), 1) for _, contracted in classes)
    row_tiles = [-(-rows // tile.rows) for rows, _ in classes]
    column_tiles = -(-columns // tile.columns)
    units = sum(r * column_tiles * p for r, p in zip(row_tiles, per_tile, strict=True))
    return units, per_tile, sum(row_tiles), columns


def _phases(g, before, length):
    """[(pixels, taps)] along one axis: the pixels that see the taps first, first + stride, ..., for each first tap."""
    return [(-(-max(length - (first - before) % g.stride, 0) // g.stride), -(-max(g.kernel - first, 0) // g.stride))
            for first in range(g.stride)]


def _blocks(op, size, tile, shared_memory):
    """How many blocks of a tile fit on a multiprocessor."""
    return max(1, min(tile.blocks, shared_memory // (_shared(op, size, tile) + OTHER_SHARED_BYTES)))


def _shared(op, size, tile):
    """Bytes of the buffers of A and B, which Tile in operands.cu lays out."""
    depth = UNIT_BYTES // size

    def buffer(along, length):
        return length * (UNIT_BYTES + ALONG_PAD_BYTES) if along else depth * (length * size + ACROSS_PAD_BYTES)

    a = buffer(op != "CONV_DW", tile.rows)
    b = buffer(op in ("CONV_DX", "CONV_DX_ALL"), tile.columns)
    return STAGES * (a + b)
