"""A generator that is given the image's label beside the code: p(x|z, y) in place of p(x|z).

Source: the reference's code, which can but does not; M2 of Kingma et al., arXiv 1406.5298, gives the encoder the label
too. docs/gradients.md derives the gradient.
"""

from minivae.layers import Layer


class AppendLabel(Layer):
    """[z, y] (N, Z + Y) for z (N, Z) and the one-hot y (N, Y) of labels (N,) int32; z itself if Y, `classes`, is 0.

    dz is the first Z columns of d[z, y]: y is data, and nobody needs its gradient.
    """

    def __init__(self, params, classes):
        super().__init__(params)
        self.classes = classes

    def forward(self, z, labels):
        if self.classes == 0:
            return z
        zy = self.like("zy", (len(z), z.shape[1] + self.classes), z)
        self.ops.append_label(z, labels, zy)
        return zy

    def backward(self, dzy):
        if self.classes == 0:
            return dzy
        dz = self.like("dz", (len(dzy), dzy.shape[1] - self.classes), dzy)
        self.ops.append_label_dx(dzy, dz)
        return dz
