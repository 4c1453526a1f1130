"""Batch normalization on the GPU: launches of the kernels in kernels/norm.cu, which says how they work."""

from minivae.ops import BN_EPS, own_sums
from minivae.ops.cuda_columns import AHEAD, THREADS, Tiling
from minivae.ops.cuda_module import Source

FEW_ROWS = 256  # one block takes as many rows as this alone

NORM = Source("columns.cu", "norm.cu", names=[*(f"{kernel}<{v}>" for v in (1, 4) for kernel in (
    "batch_moments", "batch_norm", "batch_norm_sums", "batch_norm_dx")), "moving_average"],
              THREADS=THREADS, AHEAD=AHEAD, BN_EPS=BN_EPS)


def batch_moments(x, moments):
    tiling = Tiling(x)
    tiling.launch(NORM, "batch_moments", x.dtype, x, *tiling.shape, *tiling.scratch(x.dtype), moments)


def batch_norm(x, moments, gamma, beta, slope, y, moving=None, decay=1):
    tiling = Tiling(x)
    tiling.launch(NORM, "batch_norm", x.dtype, x, moments, gamma, beta, float(slope), moving, float(decay),
                  float(1 - decay), *tiling.shape, y)


def batch_norm_dx(dy, x, moments, gamma, beta, slope, train, dx, dgamma, dbeta, whole=own_sums):
    tiling = Tiling(x, one_share=x.size // x.shape[-1] <= FEW_ROWS)
    given = dy, x, moments, gamma, beta, float(slope)
    once = tiling.shares == 1 and not (train and whole is not own_sums)
    tiling.launch(NORM, "batch_norm_sums", x.dtype, *given, train / tiling.rows, *tiling.shape,
                  *tiling.scratch(x.dtype), dx if once else None, dgamma, dbeta)
    if not once:
        by_gamma, by_beta, rows = (whole if train else own_sums)(dgamma, dbeta, tiling.rows)
        tiling.launch(NORM, "batch_norm_dx", x.dtype, *given, train / rows, by_gamma, by_beta, *tiling.shape, dx)


def moving_average(moving, moments, decay):
    NORM.launch("moving_average", moving.dtype, -(-moving.size // THREADS), THREADS, moments, float(decay),
                float(1 - decay), moving.size, moving)
