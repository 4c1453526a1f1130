"""Adam (Kingma and Ba, arXiv 1412.6980) over the flat buffers, with eps where TensorFlow puts it.

    m = beta1 m + (1 - beta1) g      v = beta2 v + (1 - beta2) g^2
    p -= lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)

The paper's eps would stand inside the bias correction; TensorFlow's is larger by 1 / sqrt(1 - beta2^t) early on.
docs/gradients.md says why the correction is needed, and what beta1 = 0.5 does.
"""

import numpy as np


class Adam:
    """t (1,) int64 counts finished steps and lr (1,) float64 is read at each step: both live on the device."""

    def __init__(self, params, lr=1e-3, beta1=0.5, beta2=0.999, eps=1e-8):
        xp = params.ops.xp
        self.params = params
        self.beta1 = beta1
        self.beta2 = beta2
        self.eps = eps
        self.m = xp.zeros_like(params.values)
        self.v = xp.zeros_like(params.values)
        self.lr = xp.full(1, lr, np.float64)
        self.t = xp.zeros(1, np.int64)
        self.rate = xp.zeros(1, params.dtype)  # lr with the bias corrections of this step
        self.end = params.values.size  # what follows it in the flat arrays has been updated in this step already

    def update(self, first=None):
        """Update every parameter, or those from `first` on; the next call goes on before them. ops.record counts t."""
        p = self.params
        if self.end == p.values.size:
            p.ops.adam_rate(self.lr, self.t, self.beta1, self.beta2, self.rate)
        start = first.start if first else 0
        parts = (flat[start : self.end] for flat in (p.values, p.grads, self.m, self.v))
        p.ops.adam(*parts, self.rate, self.beta1, self.beta2, self.eps)
        self.end = start or p.values.size
