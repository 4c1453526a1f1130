"""Batch normalization on the GPU: launches of the kernels in kernels/norm.cu, which says how they work."""

from minivae.ops import BN_EPS
from minivae.ops.cuda_module import Source, scratch

THREADS = 256  # of a block, at most
WIDTH = 32  # channels of a block: 128 bytes of floats
BLOCKS = 512  # about four for each multiprocessor of a large card
FEW_ROWS = 256  # one block takes as many rows as this alone
AHEAD = 4  # partial sums whose loads are on their way at once

NORM = Source("norm.cu", names=[*(f"{kernel}<{v}>" for v in (1, 4) for kernel in (
    "batch_moments", "batch_norm", "batch_norm_sums", "batch_norm_dx")), "moving_average"],
              THREADS=THREADS, AHEAD=AHEAD, BN_EPS=BN_EPS)


class _Tiling:
    """How a matrix x (rows, c) is cut: v channels for each thread, `columns` threads side by side, `grid` blocks."""

    def __init__(self, x, one_share=False):
        self.c = x.shape[-1]
        self.rows = x.size // self.c
        self.v = 4 if self.c % 4 == 0 else 1
        self.columns = min(self.c, WIDTH) // self.v
        lanes = THREADS // self.columns
        strips = -(-self.c // (self.columns * self.v))
        self.shares = 1 if one_share else max(1, min(-(-self.rows // lanes), BLOCKS // strips))
        self.grid = self.shares, strips
        self.block = self.columns * lanes
        self.shape = self.rows, self.c, self.columns

    def scratch(self, dtype):
        """Room for two partial sums of each block and channel, and the strips' counters."""
        return (scratch("norm_partial", (self.shares, 2, self.c), dtype),
                scratch("norm_counters", (self.grid[1],), "uint32"))

    def launch(self, kernel, dtype, *args):
        NORM.launch(f"{kernel}<{self.v}>", dtype, self.grid, self.block, *args)


def batch_moments(x, moments):
    tiling = _Tiling(x)
    tiling.launch("batch_moments", x.dtype, x, *tiling.shape, *tiling.scratch(x.dtype), moments)


def batch_norm(x, moments, gamma, beta, slope, y, moving=None, decay=1):
    tiling = _Tiling(x)
    tiling.launch("batch_norm", x.dtype, x, moments, gamma, beta, float(slope), moving, float(decay), float(1 - decay),
                  *tiling.shape, y)


def batch_norm_dx(dy, x, moments, gamma, beta, slope, train, dx, dgamma, dbeta):
    tiling = _Tiling(x, one_share=x.size // x.shape[-1] <= FEW_ROWS)
    given = dy, x, moments, gamma, beta, float(slope), int(train)
    tiling.launch("batch_norm_sums", x.dtype, *given, *tiling.shape, *tiling.scratch(x.dtype), dx, dgamma, dbeta)
    if tiling.shares > 1:
        tiling.launch("batch_norm_dx", x.dtype, *given, dgamma, dbeta, *tiling.shape, dx)


def moving_average(moving, moments, decay):
    NORM.launch("moving_average", moving.dtype, -(-moving.size // THREADS), THREADS, moments, float(decay),
                float(1 - decay), moving.size, moving)
