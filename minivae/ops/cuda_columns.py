"""How the kernels of kernels/columns.cu are launched: batch norm's and those of sigma spectrum."""

from minivae.ops.cuda_module import scratch

THREADS = 256  # of a block, at most
WIDTH = 32  # channels of a block: 128 bytes of floats
BLOCKS = 512  # about four for each multiprocessor of a large card
AHEAD = 4  # partial sums whose loads are on their way at once


class Tiling:
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
        return (scratch("column_sums", (self.shares, 2, self.c), dtype),
                scratch("column_counters", (self.grid[1],), "uint32"))

    def launch(self, source, kernel, dtype, *args):
        source.launch(f"{kernel}<{self.v}>", dtype, self.grid, self.block, *args)
