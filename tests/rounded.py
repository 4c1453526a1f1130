"""The reference for tf32: NumPy's products of factors that are cut short first."""

import numpy as np

from minivae.ops import PIXEL_VAR, numpy_ops


class Rounded:
    """numpy_ops with the factors of every product cut short as the kernels for tensor cores do it."""

    def __getattr__(self, name):
        return getattr(numpy_ops, name)

    def im2col(self, x, g, buffers):
        return numpy_ops.im2col(tf32(x), g, buffers)

    def conv(self, cols, w, *rest):
        numpy_ops.conv(cols, tf32(w), *rest)

    def conv_dx(self, dy, w, *rest):
        numpy_ops.conv_dx(tf32(dy), tf32(w), *rest)

    def conv_dw(self, cols, dy, *rest):
        numpy_ops.conv_dw(cols, tf32(dy), *rest)

    def dense(self, x, w, *rest):
        numpy_ops.dense(tf32(x), tf32(w), *rest)

    def dense_dx(self, dy, w, *rest):
        numpy_ops.dense_dx(tf32(dy), tf32(w), *rest)

    def dense_dw(self, x, dy, *rest):
        numpy_ops.dense_dw(tf32(x), tf32(dy), *rest)

    def log_energy(self, f, pool, energy):
        numpy_ops.dense_dx(tf32(f**2), tf32(pool), energy)
        energy[...] = np.log(energy + np.float32(PIXEL_VAR))


def tf32(array):
    """What mma reads of a factor, without the last 13 bits, times its part of TF32_PRODUCT in device.h."""
    return (array.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) * np.float32(1 + 0.6931472 / 2048)
