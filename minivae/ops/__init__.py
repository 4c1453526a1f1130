"""The array operations under the layers, each written twice under one name and signature.

numpy_ops defines what every operation means; cuda_ops launches a kernel of our own for it. Layers are given one of
the two modules and never ask which. The contract, for both:

- Arrays are C-contiguous; images are NHWC; T is float32 or float64, one T per call.
- An operation writes into arrays that it is given, allocates nothing after its first call with given shapes, and
  never waits for the device.
- What changes from step to step (the update count t, the learning rate) lives in one-element arrays, so a captured
  CUDA graph reads the current value.
"""
