"""What sigma spectrum needs beside the other operations, on the GPU: launches of the kernels in kernels/spectrum.cu."""

import math

from minivae.ops import PIXEL_VAR
from minivae.ops.cuda_columns import AHEAD, THREADS, Tiling
from minivae.ops.cuda_conv import dense_dx
from minivae.ops.cuda_module import Source, scratch

SIDE = 32  # of a tile of mix: 128 bytes of floats

SPECTRUM = Source("columns.cu", "spectrum.cu", names=["subtract", "bias_tanh_dx<1>", "bias_tanh_dx<4>", "mix",
                                                      "student<1>", "student<4>", "student_dx<1>", "student_dx<4>",
                                                      "squares", "log_energy", "log_energy_dx"],
                  THREADS=THREADS, AHEAD=AHEAD, SIDE=SIDE, PIXEL_VAR=PIXEL_VAR)


def subtract(x_hat, x, error):
    SPECTRUM.launch("subtract", x.dtype, _blocks(x), THREADS, x_hat, x, x.size, error)


def bias_tanh_dx(dy, y, da, db):
    tiling = Tiling(y)
    tiling.launch(SPECTRUM, "bias_tanh_dx", y.dtype, dy, y, *tiling.shape, *tiling.scratch(y.dtype), da, db)


def mix_columns(x, c, y):
    n, height, width = x.shape
    _mix(x, c, 1, n * height, width, width, 0, 0, y)


def mix_rows(r, x, y):
    n, height, width = x.shape
    _mix(r, x, n, height, height, width, 0, height * width, y)


def _mix(a, b, products, m, inner, n, a_step, b_step, y):
    grid = -(-n // SIDE), -(-m // SIDE), products
    SPECTRUM.launch("mix", y.dtype, grid, THREADS, a, b, m, inner, n, a_step, b_step, y)


def student(f, log_scale, b, nu, scale, rec, df, dlog_scale, db):
    size = f.shape[1]
    constant = math.lgamma(nu / 2) - math.lgamma((nu + size) / 2) + size / 2 * math.log(nu / 2)
    tiling = Tiling(f)
    weight = scratch("student_weight", rec.shape, f.dtype)
    SPECTRUM.launch(f"student<{tiling.v}>", f.dtype, len(f), THREADS, f, log_scale, b, float(nu), constant,
                    size, rec, weight)
    tiling.launch(SPECTRUM, "student_dx", f.dtype, f, log_scale, b, weight, float(scale), *tiling.shape,
                  *tiling.scratch(f.dtype), df, dlog_scale, db)


def log_energy(f, pool, energy):
    squares = scratch("squares", f.shape, f.dtype)
    SPECTRUM.launch("squares", f.dtype, _blocks(f), THREADS, f, f.size, squares)
    dense_dx(squares, pool, energy)
    SPECTRUM.launch("log_energy", f.dtype, _blocks(energy), THREADS, energy.size, energy)


def log_energy_dx(denergy, f, pool, energy, df):
    bands, size = pool.shape
    SPECTRUM.launch("log_energy_dx", f.dtype, _blocks(f), THREADS, denergy, f, pool, energy, size, bands, f.size, df)


def _blocks(array):
    """For a thread for each value."""
    return -(-array.size // THREADS)
