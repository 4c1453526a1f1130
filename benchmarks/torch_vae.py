"""The same model in PyTorch, to measure against: TensorFlow's SAME padding, no biases before batch norm, same loss.

It is written as a PyTorch user would write it for speed: fused Adam, functional pads and crops, autograd for the rest.
Images and dense layers keep minivae's order of elements, so weights carry over by a permutation of axes.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from minivae.ops import BN_EPS, VAR_FLOOR

COLUMNS = ("eager", "channels_last", "compile")


class Block(nn.Module):
    """affine -> batch norm -> leaky ReLU; slope None leaves the last away."""

    def __init__(self, affine, channels, slope=0.2):
        super().__init__()
        self.affine, self.slope = affine, slope
        norm = nn.BatchNorm1d if isinstance(affine, nn.Linear) else nn.BatchNorm2d
        self.norm = norm(channels, eps=BN_EPS, momentum=0.01)

    def forward(self, x):
        u = self.norm(self.affine(x))
        return u if self.slope is None else F.leaky_relu(u, self.slope)


class Conv(nn.Conv2d):
    """3x3, stride 2, padded (0, 1): SAME for even sizes."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, 3, 2, bias=False)

    def forward(self, x):
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class ConvTranspose(nn.ConvTranspose2d):
    """5x5, stride 2, cropped by (1, 2): SAME for even sizes. padding=1 crops (1, 1), the slice one more at the end."""

    def __init__(self, inputs, outputs, bias=False):
        super().__init__(inputs, outputs, 5, 2, padding=1, bias=bias)

    def forward(self, x):
        return super().forward(x)[:, :, :-1, :-1]


def dense(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


class TorchVAE(nn.Module):
    """forward(x, eps) is the loss in nats per image, for x (N, C, H, W) and eps (N, Z)."""

    def __init__(self, latent=10, channels=3):
        super().__init__()
        self.encoder = nn.ModuleList([
            Block(Conv(channels, 32), 32), Block(Conv(32, 64), 64), Block(Conv(64, 128), 128),
            Block(dense(2048, 1024), 1024),
        ])
        self.mean, self.var = (Block(dense(1024, latent), latent, None) for _ in range(2))
        self.generator = nn.ModuleList([
            Block(dense(latent, 8192), 8192),
            Block(ConvTranspose(512, 128), 128), Block(ConvTranspose(128, 64), 64), ConvTranspose(64, channels, True),
        ])

    def forward(self, x, eps):
        h = x
        for conv in self.encoder[:3]:
            h = conv(h)
        h = self.encoder[3](h.permute(0, 2, 3, 1).flatten(1))
        mean, var = self.mean(h), F.softplus(self.var(h)) + VAR_FLOOR
        z = mean + var.sqrt() * eps
        h = self.generator[0](z).view(-1, 4, 4, 512).permute(0, 3, 1, 2)
        for conv in self.generator[1:]:
            h = conv(h)
        rec = 0.5 * (x - torch.tanh(h)).square().sum()
        kl = 0.5 * (z.square() - (z - mean).square() / var - var.log()).sum()
        return (rec + kl) / len(x)

    @torch.no_grad()
    def load(self, params):
        """Take the weights of minivae's Parameters; gamma is 1 and beta 0 in both from the start."""
        blocks = [*self.encoder, self.mean, self.var, *self.generator]
        names = ("enc/conv1", "enc/conv2", "enc/conv3", "enc/dense", "enc/mean", "enc/var",
                 "gen/dense", "gen/tconv1", "gen/tconv2", "gen/tconv3")
        weights = {p.name: p.value for p in params.trained}
        for name, block in zip(names, blocks, strict=True):
            w = torch.tensor(np.asarray(weights[f"{name}/w"]))
            layer = block.affine if isinstance(block, Block) else block
            layer.weight.copy_(w.permute(3, 2, 0, 1) if w.ndim == 4 else w.T)
        self.generator[-1].bias.copy_(torch.tensor(np.asarray(weights["gen/tconv3/b"])))


def training_step(model, x, column):
    """A function of (x, eps), tensors of the device where `model` and `x` are, that makes one update and returns the
    loss; and x as the column wants it. column: "eager" (NCHW), "channels_last", or of that "compile", "max-autotune",
    which uses CUDA graphs, or "graph", for which gpu_step.py records the whole step as one.
    """
    layout = torch.contiguous_format if column == "eager" else torch.channels_last
    model, x = model.to(memory_format=layout), x.contiguous(memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.5, 0.999), fused=True,
                                 capturable=column == "graph")
    modes = {"compile": "default", "graph": "default", "max-autotune": "max-autotune"}
    loss_of = torch.compile(model, mode=modes[column], dynamic=False) if column in modes else model

    def step(x, eps):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(x, eps)
        loss.backward()
        optimizer.step()
        return loss

    return step, x
