"""The operations on the GPU: each launches the kernels that do what plain.py defines under the same name.

How each works is said beside it, in kernels/*.cu. Products and convolutions are in cuda_conv, batch norm in cuda_norm,
and what sigma spectrum alone needs in cuda_spectrum.
"""

import math

import numpy as np

from minivae.ops import HALF_RANGE, SIGMA_FLOOR, VAR_FLOOR, cuda_module
from minivae.ops.cuda_conv import conv, conv_dw, conv_dx, dense, dense_dw, dense_dx, im2col  # noqa: F401
from minivae.ops.cuda_module import (  # noqa: F401
    IMAGES_AT_ONCE,
    ROWS_TOGETHER,
    SYNCHRONOUS,
    Buffers,
    DoubleBuffer,
    Source,
    beside,
    branch,
    capture,
    free_memory,
    join,
    to_host,
)
from minivae.ops.cuda_norm import batch_moments, batch_norm, batch_norm_dx, moving_average  # noqa: F401
from minivae.ops.cuda_spectrum import (  # noqa: F401
    bias_tanh_dx,
    log_energy,
    log_energy_dx,
    mix_columns,
    mix_rows,
    student,
    subtract,
)

THREADS = 256  # of a block
IMAGE_THREADS = 192  # of a block of the image's kernels, at most: a multiple of 1, 2, 3, 4 and 6 channels
BLOCKS = 1024  # about eight for each multiprocessor of a large card
ADAM_BLOCKS = 2  # on a multiprocessor: enough loads on their way for the memory, and room for what runs beside it

GAUSSIAN = Source("gaussian.cu", names=["latent", "latent_dx", "append_label", "append_label_dx", "bias_tanh",
                                        "tanh_gaussian<1>", "tanh_gaussian<4>", "tanh_gaussian_pixel", "log_sigma_dx",
                                        "fit_sigma"],
                  THREADS=THREADS, IMAGE_THREADS=IMAGE_THREADS, VAR_FLOOR=VAR_FLOOR, SIGMA_FLOOR=SIGMA_FLOOR)
STEP = Source("step.cu", names=["normal", "gather", "take_labels", "dequantize", "adam_rate", "adam<1>", "adam<4>",
                                "add<1>", "add<4>", "record"],
              THREADS=THREADS, HALF_RANGE=HALF_RANGE)


def __getattr__(name):
    if name == "xp":  # CuPy, or what cuda_module.use put in its place
        return cuda_module.xp
    raise AttributeError(name)


# The Gaussians: latent code and image


def latent(mean, s, eps, analytic, z, var, kl):
    n, size = mean.shape
    GAUSSIAN.launch("latent", mean.dtype, _blocks(32 * n), THREADS, mean, s, eps, int(analytic), n, size, z, var,
                    kl)


def latent_dx(dz, mean, s, eps, analytic, scale, z, var, dmean, ds):
    GAUSSIAN.launch("latent_dx", dz.dtype, _blocks(dz.size), THREADS, dz, mean, s, eps, int(analytic), float(scale),
                    z, var, dz.size, dmean, ds)


def append_label(z, labels, zy):
    size = z.shape[1]
    GAUSSIAN.launch("append_label", z.dtype, _blocks(zy.size), THREADS, z, labels, size, zy.shape[1], zy.size, zy)


def append_label_dx(dzy, dz):
    GAUSSIAN.launch("append_label_dx", dz.dtype, _blocks(dz.size), THREADS, dzy, dz.shape[1], dzy.shape[1], dz.size, dz)


def bias_tanh(a, b, x_hat):
    GAUSSIAN.launch("bias_tanh", a.dtype, _blocks(a.size), THREADS, a, b, b.size, a.size, x_hat)


def tanh_gaussian(a, b, x, log_sigma, scale, x_hat, rec, da, db):
    width = _vector_width(math.prod(x.shape[1:]))
    blocks, block, tiling = _image_tiling(x, width, sums=2)
    GAUSSIAN.launch(f"tanh_gaussian<{width}>", x.dtype, blocks, block, a, b, x, log_sigma, float(scale), *tiling,
                    x_hat, rec, da, db)


# A training step's ends: noise, batch, Adam, log


def normal(seed, stream, t, out):
    STEP.launch("normal", out.dtype, _blocks(-(-out.size // 4)), THREADS, np.uint64(seed),
                np.uint32(stream), t, out.size, out)


def gather(images, index, t, x):
    window, n = index.shape
    size = math.prod(x.shape[1:])
    STEP.launch("gather", x.dtype, (n, _blocks(size // 4)), THREADS, images, index, t, window, size, x)


def take_labels(table, t, labels):
    STEP.launch("take_labels", np.float32, _blocks(labels.size), THREADS, table, t, *table.shape, labels)


def add(total, term):
    width = _vector_width(total.size)
    STEP.launch(f"add<{width}>", total.dtype, _blocks(total.size // width), THREADS, term, total.size, total)


def adam_rate(lr, t, beta1, beta2, rate):
    STEP.launch("adam_rate", rate.dtype, 1, 1, lr, t, np.float64(beta1), np.float64(beta2), rate)


def adam(values, grads, m, v, rate, beta1, beta2, eps):
    width = _vector_width(values.size)
    blocks = min(_blocks(values.size // width), ADAM_BLOCKS * cuda_module.multiprocessors)
    STEP.launch(f"adam<{width}>", values.dtype, blocks, THREADS, rate, np.float64(beta1), np.float64(beta2), eps,
                values.size, values, grads, m, v)


def record(rec, kl, t, history):
    STEP.launch("record", rec.dtype, 1, THREADS, rec, kl, rec.size, len(history), t, history)


# The fitted sigmas


def log_sigma_dx(rec, log_sigma, size, scale, dlog_sigma):
    GAUSSIAN.launch("log_sigma_dx", rec.dtype, 1, THREADS, rec, log_sigma, size, float(scale), rec.size, dlog_sigma)


def fit_sigma(rec, size, log_sigma):
    GAUSSIAN.launch("fit_sigma", rec.dtype, 1, THREADS, rec, size, rec.size, log_sigma)


def tanh_gaussian_pixel(a, b, x, scale, x_hat, rec, da, db):
    blocks, block, tiling = _image_tiling(x, 1, sums=3)
    GAUSSIAN.launch("tanh_gaussian_pixel", x.dtype, blocks, block, a, b, x, float(scale), *tiling, x_hat, rec, da, db)


def dequantize(seed, stream, t, x, first=0):
    STEP.launch("dequantize", x.dtype, _blocks(-(-x.size // 4)), THREADS, np.uint64(seed), np.uint32(stream), t, first,
                x.size, x)


def _blocks(threads):
    return -(-threads // THREADS)


def _vector_width(count):
    """How many of `count` values a thread takes at a time."""
    return 4 if count % 4 == 0 else 1


def _image_tiling(x, width, sums):
    """(blocks, threads of a block, the kernel's arguments from `images` to `counter`) for images x (N, H, W, C).

    A small batch gets several blocks for each image, enough to fill the card.
    """
    n = len(x)
    c = x.shape[-1]
    size = math.prod(x.shape[1:])
    block = IMAGE_THREADS // c * c
    parts = max(1, min(-(-size // (block * width)), BLOCKS // 4 // n))
    partial = cuda_module.scratch("image_sums", (n * parts, sums, c), x.dtype)
    return n * parts, block, (n, size, c, parts, partial, cuda_module.scratch("image_counter", (1,), "uint32"))
