"""The contract between the layers and the arithmetic, in words, and the model's constants.

About thirty operations are written three times under one name and signature:

    plain       the definition: every operation as one would write it on paper, in plain NumPy (with plain_sigmas)
    numpy_ops   the same, fast on a CPU: threads, tiles, fewer multiplications; plain's own where that is fast enough
    cuda_ops    the same on a GPU: each launches a kernel of ours

A model is given one of the three modules and never asks which. Whatever runs on a model relies on this:

- Images are NHWC and arrays are C-contiguous. T is float32 or float64, one T for a model.
- An operation writes into the arrays that it is given. After its first call with given shapes the fast modules allocate
  nothing large, and none waits for the device.
- What changes from step to step (the step t, the learning rate) lives in one-element arrays on the device, so that a
  recorded CUDA graph reads its present value.
- dy is always dL/dy, and so on; an operation whose name ends in _dx or _dw finds the gradient of its namesake.

- `with ops.branch(name):` encloses operations that may run beside those that follow the block, until ops.join(name);
  branches of one name run one after the other. ops.beside(f, g) calls two functions that may run at the same time.
  Neither side may write what the other reads or writes. A step ends when its branches have ended.

Letters of shapes: N images; (H, W) a Geometry's big side with I channels; (h, w) its small side with O channels; k the
kernel's edge; C channels of batch norm or of an image; Z latents; D = H W C;
Y different labels, and y (N, Y) the one-hot of labels (N,) int32.

Beside the operations each module has what its device needs: xp (the array module), Buffers, to_host, capture,
DoubleBuffer, free_memory, SYNCHRONOUS, IMAGES_AT_ONCE and ROWS_TOGETHER. Those of a CPU are in host.py.
"""

BN_EPS = 1e-3  # added to a variance under batch norm's square root
VAR_FLOOR = 1e-5  # added to softplus: the variance of q(z|x) never reaches zero
HALF_RANGE = 127.5  # grey levels 0..255 become x = level / 127.5 - 1 in [-1, 1]
SIGMA_FLOOR = 1 / HALF_RANGE  # one grey level: a fitted p(x|z) that is narrower would describe the rounding
PIXEL_VAR = SIGMA_FLOOR**2 / 12  # of noise that is uniform over one grey level


def own_sums(dgamma, dbeta, rows):
    """What batch_norm_dx takes for dx: a channel's two sums over the batch, and its rows. Here the batch is x itself.

    For a shard of a batch, training/sharded_batch.py has what takes its place.
    """
    return dgamma, dbeta, rows


def operations(gpu=False, precision="fp32"):
    """numpy_ops, or cuda_ops on the first GPU in precision "tf32" or "fp32". UserError says what a GPU lacks."""
    if not gpu:
        from minivae.ops import numpy_ops

        return numpy_ops
    from minivae.ops import cuda_module

    cuda_module.require_gpu(precision)
    from minivae.ops import cuda_ops

    return cuda_ops
