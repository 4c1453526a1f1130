"""A trained model as Python sees it: arrays of uint8 images in and out, on the host, any number of them."""

import numpy as np
from tqdm import tqdm

from minivae.density.estimates import Model, scaled
from minivae.errors import UserError
from minivae.training import figures


class TrainedVAE:
    """images (N, H, W, C) uint8, codes z (N, Z); batch norm is in test mode throughout."""

    def __init__(self, vae):
        self.vae = vae
        self.model = Model(vae, vae.ops.IMAGES_AT_ONCE)

    def encode(self, images):
        """mean, var (N, Z) float32 of q(z|x). UserError if the images are of another shape or type."""
        self._check(images)
        size = self.model.batch
        starts = tqdm(range(0, len(images), size), "encoding", delay=1, leave=False, disable=None)
        batches = [self.model.posterior(self.model.device(scaled(images[start : start + size]))) for start in starts]
        mean, var = (np.concatenate(parts).astype(np.float32) for parts in zip(*batches, strict=True))
        return mean, var

    def decode(self, z):
        """x_hat, the mean of p(x|z), as images."""
        return figures.to_uint8(figures.decode(self.vae, np.asarray(z)))

    def _check(self, images):
        if images.shape[1:] != self.vae.shape or images.dtype != np.uint8 or not len(images):
            raise UserError(f"images {images.dtype} {images.shape}; the model takes uint8 "
                            f"(N, {', '.join(map(str, self.vae.shape))})")
