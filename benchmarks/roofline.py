"""What a step cannot beat: each product's multiplications and bytes against a card's data sheet.

floor = max(FLOPs / peak FLOP/s, bytes / memory bandwidth), bytes being both images and the weights, each once.
"""

from dataclasses import dataclass

import numpy as np

from minivae.layers import Conv2D, Conv2DTranspose

FLOAT = 4  # bytes

# TFLOP/s in tf32 (dense) and fp32, and TB/s, of NVIDIA's data sheets; the longest name that the card's contains counts.
CARDS = {
    "A100-SXM4-40GB": (156, 19.5, 1.555), "A100-SXM4-80GB": (156, 19.5, 2.039), "A100-PCIE-40GB": (156, 19.5, 1.555),
    "A100 80GB PCIe": (156, 19.5, 1.935), "H100 80GB HBM3": (494.7, 66.9, 3.35), "H100 PCIe": (378, 51.2, 2.0),
    "H200": (494.7, 66.9, 4.8), "L4": (60.5, 30.3, 0.3), "L40S": (183, 91.6, 0.864),
}


@dataclass(frozen=True)
class Product:
    """A layer's three passes at one batch size: a big image, a small one and the weights between them."""

    name: str
    kind: str  # conv, tconv or dense
    geometry: object  # of conv and tconv
    batch: int
    w: tuple  # (k, k, I, O), (I, O)

    @property
    def big(self):
        return (self.batch, self.geometry.height, self.geometry.width, self.w[2]) if self.geometry else \
            (self.batch, self.w[0])

    @property
    def small(self):
        return (self.batch, self.geometry.out_height, self.geometry.out_width, self.w[3]) if self.geometry else \
            (self.batch, self.w[1])

    @property
    def passes(self):
        """forward, dx and dw; the first layer's input has no gradient."""
        return ("forward", "dw") if self.name == "enc/conv1" else ("forward", "dx", "dw")

    @property
    def flops(self):
        """Of one pass: every small pixel meets every tap, those that fall outside counted too."""
        return 2 * np.prod(self.small[:-1]) * np.prod(self.w)

    @property
    def bytes(self):
        return FLOAT * sum(np.prod(shape) for shape in (self.big, self.small, self.w))

    def floor(self, peak, bandwidth):
        """Seconds for one pass at `peak` TFLOP/s and `bandwidth` TB/s."""
        return max(self.flops / peak, self.bytes / bandwidth) / 1e12


def products(vae, batch):
    """The Products of a VAE, in the order of the forward pass."""
    e, g = vae.encoder, vae.generator
    layers = [e.conv1.affine, e.conv2.affine, e.conv3.affine, e.dense.affine, e.mean.affine, e.var.affine,
              g.dense.affine, g.tconv1.affine, g.tconv2.affine, g.tconv3]
    kinds = {Conv2D: "conv", Conv2DTranspose: "tconv"}
    return [Product(layer.w.name.removesuffix("/w"), kinds.get(type(layer), "dense"), getattr(layer, "g", None), batch,
                    layer.w.shape) for layer in layers]


def card(name):
    """(tf32 TFLOP/s, fp32 TFLOP/s, TB/s) of a card by its full name, or None if its data sheet is not here."""
    found = [known for known in CARDS if known in name]
    return CARDS[max(found, key=len)] if found else None
