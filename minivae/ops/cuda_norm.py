"""Batch normalization on the GPU: numpy_norm's operations, launched; how they work is said in kernels/norm.cu."""

from minivae.ops import BN_EPS
from minivae.ops.cuda_module import Source, scratch

NORM = Source("norm.cu", names=[*(f"{kernel}<{v}>" for v in (1, 4) for kernel in (
    "batch_moments", "batch_norm", "batch_norm_sums", "batch_norm_dx")), "moving_average"])
THREADS = 256
WIDTH = 32  # channels of a block: 128 bytes of floats
BLOCKS = 512  # about four for each multiprocessor of a large card
FEW_ROWS = 256  # up to here one block takes all rows


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
        self.grid, self.block = (self.shares, strips), self.columns * lanes
        self.shape = self.rows, self.c, self.columns

    def scratch(self, dtype):
        """Room for two partial sums of each block and channel, and the strips' counters."""
        return (scratch("norm_partial", (self.shares, 2, self.c), dtype),
                scratch("norm_counters", (self.grid[1],), "uint32"))


def batch_moments(x, moments):
    t = _Tiling(x)
    NORM.launch(f"batch_moments<{t.v}>", x.dtype, t.grid, t.block, x, *t.shape, *t.scratch(x.dtype), moments)


def batch_norm(x, moments, gamma, beta, slope, y, moving=None, decay=1):
    t = _Tiling(x)
    NORM.launch(f"batch_norm<{t.v}>", x.dtype, t.grid, t.block, x, moments, gamma, beta, float(slope), BN_EPS, moving,
                float(decay), float(1 - decay), *t.shape, y)


def batch_norm_dx(dy, x, moments, gamma, beta, slope, train, dx, dgamma, dbeta):
    t = _Tiling(x, one_share=x.size // x.shape[-1] <= FEW_ROWS)
    given = dy, x, moments, gamma, beta, float(slope), BN_EPS, int(train)
    NORM.launch(f"batch_norm_sums<{t.v}>", x.dtype, t.grid, t.block, *given, *t.shape, *t.scratch(x.dtype),
                dx, dgamma, dbeta)
    if t.shares > 1:
        NORM.launch(f"batch_norm_dx<{t.v}>", x.dtype, t.grid, t.block, *given, dgamma, dbeta, *t.shape, dx)


def moving_average(moving, moments, decay):
    NORM.launch("moving_average", moving.dtype, -(-moving.size // THREADS), THREADS, moments, float(decay),
                float(1 - decay), moving.size, moving)
