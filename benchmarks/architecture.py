"""The README's table of the reference's model: its layers, what each gives, and how many parameters it has.

    python benchmarks/architecture.py
"""

import math

from readme import table, write_between

from minivae.layers import Block, Conv2D, Dense
from minivae.ops import numpy_ops
from minivae.vae import VAE


def describe(layer):
    """(what an affine layer is, the shape of its output for one image)."""
    kind = type(layer).__name__
    if isinstance(layer, Dense):
        return kind, str(layer.w.shape[1])
    g = layer.g
    size = (g.out_height, g.out_width, layer.w.shape[3])
    if not isinstance(layer, Conv2D):
        size = (g.height, g.width, layer.w.shape[2])
    return f"{kind} {g.kernel} x {g.kernel}, stride {g.stride}", " x ".join(map(str, size))


def rows(vae):
    """A row for each layer; its parameters are those of its batch norm, or its bias, as well."""
    found = []
    for network, part in (("enc", vae.encoder), ("gen", vae.generator)):
        for name, layer in vars(part).items():
            own = [math.prod(p.shape) for p in vae.params.trained if p.name.startswith(f"{network}/{name}/")]
            if own:
                affine = layer.affine if isinstance(layer, Block) else layer
                found.append([f"{network}/{name}", *describe(affine), f"{sum(own):,}"])
    return found


def main():
    vae = VAE((32, 32, 3), 10, numpy_ops)
    total = sum(math.prod(p.shape) for p in vae.params.trained)
    about = (f"The reference's model has {total:,} parameters. Batch norm follows every layer but the last and, except "
             "on the two heads, leaky ReLU; the last layer has a bias and tanh.")
    header = ["layer", "what it is", "output", "parameters"]
    write_between("architecture", f"{about}\n\n{table(header, rows(vae))}")


if __name__ == "__main__":
    main()
