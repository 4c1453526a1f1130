"""The reference's protocol: the mean loss on test images, with batch norm in test mode and one sampled z for each."""

import numpy as np

from minivae.ops.philox import STREAMS

TEST_BATCH = 200


class Evaluation:
    """Losses of `vae` on test_images (N, H, W, C) uint8; the noise is a function of the seed, the same each time.

    labels (N,) int32 are those of the images, for a model that is given labels.
    """

    def __init__(self, vae, test_images, seed, labels=None):
        self.vae = vae
        self.seed = seed
        self.device_images = vae.ops.xp.asarray(test_images)
        self.labels = None if labels is None else vae.ops.xp.asarray(labels)
        self.buffers = vae.ops.Buffers()

    def losses(self):
        """(rec, kl) in nats per image, a mean over the images. Nothing in the model changes."""
        vae, ops = self.vae, self.vae.ops
        n = len(self.device_images)
        total = np.zeros(2)
        for batch, start in enumerate(range(0, n, TEST_BATCH)):
            rows = np.arange(start, min(start + TEST_BATCH, n), dtype=np.int32)[None]
            x = self.buffers("x", (rows.size, *vae.shape), vae.dtype)
            eps = self.buffers("eps", (rows.size, vae.latent), vae.dtype)
            t = ops.xp.zeros(1, np.int64)
            ops.gather(self.device_images, ops.xp.asarray(rows), t, x)
            ops.normal(self.seed, STREAMS["test"], t + batch, eps)
            if vae.dequantized:
                ops.dequantize(self.seed, STREAMS["test pixels"], t + batch, x)
            labels = None if self.labels is None else self.labels[start : start + TEST_BATCH]
            losses = vae.forward(x, eps, train=False, labels=labels)
            total += [ops.to_host(loss).sum(dtype=np.float64) for loss in losses]
        return total / n
