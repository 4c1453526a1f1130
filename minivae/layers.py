"""The layers: each stores what its backward needs, assigns its gradients, and returns dL/dx.

dy, dx, dw, ... are always dL/d of that. A layer runs once a step, so gradients are assigned, not accumulated. A layer
writes its results into arrays of its own, which its next call with the same shapes overwrites. The arithmetic is that
of params.ops, which ops/plain.py defines and docs/gradients.md derives.

An affine layer before a batch norm has no bias: batch norm subtracts the channel's mean, the bias with it, so its
gradient is exactly zero. beta does its work.
"""

from minivae.ops.geometry import Geometry

LEAKY_SLOPE = 0.2
DECAY = 0.99  # of the moving statistics


class Layer:
    """What all layers share: the operations of their device, and arrays that are allocated once."""

    def __init__(self, params):
        self.ops = params.ops
        self.buffers = params.ops.Buffers()

    def like(self, name, shape, x):
        """This layer's array `name` of that shape, with the dtype of x."""
        return self.buffers(name, shape, x.dtype)


class Dense(Layer):
    """y = x w      x (N, I)   w (I, O)   y (N, O)

    With dy = dL/dy:    dw = x^T dy    dx = dy w^T
    """

    def __init__(self, params, name, inputs, outputs):
        super().__init__(params)
        self.w = params.weight(f"{name}/w", (inputs, outputs), fan=inputs)

    def forward(self, x, moments=None):
        self.x = x
        y = self.like("y", (len(x), self.w.shape[1]), x)
        self.ops.dense(x, self.w.value, y, moments)
        return y

    def backward(self, dy, want_dw=True):
        """want_dw=False finds dx alone and leaves w's gradient as it was."""
        if want_dw:
            with self.ops.branch("dw"):
                self.ops.dense_dw(self.x, dy, self.w.grad)
        dx = self.like("dx", self.x.shape, dy)
        self.ops.dense_dx(dy, self.w.value, dx)
        return dx


class Conv2D(Layer):
    """y = im2col(x) w      x (N, H, W, I)   w (k, k, I, O)   y (N, h, w, O), SAME padding

    With dy = dL/dy:    dw = im2col(x)^T dy    dx = col2im(dy w^T)
    """

    def __init__(self, params, name, geometry, inputs, outputs):
        super().__init__(params)
        self.g = geometry
        k = geometry.kernel
        self.w = params.weight(f"{name}/w", (k, k, inputs, outputs), fan=k * k * inputs)

    def forward(self, x, moments=None):
        self.x_shape = x.shape
        self.cols = self.ops.im2col(x, self.g, self.buffers)
        y = self.like("y", (len(x), self.g.out_height, self.g.out_width, self.w.shape[3]), x)
        self.ops.conv(self.cols, self.w.value, self.g, y, moments)
        return y

    def backward(self, dy, want_dw=True, want_dx=True):
        """want_dx=False is for the first layer: nobody needs the gradient of the image."""
        if want_dw:
            with self.ops.branch("dw"):
                self.ops.conv_dw(self.cols, dy, self.g, self.w.grad)
        if want_dx:
            dx = self.like("dx", self.x_shape, dy)
            self.ops.conv_dx(dy, self.w.value, self.g, dx)
            return dx


class Conv2DTranspose(Layer):
    """y = col2im(x w^T)      x (N, h, w, I)   w (k, k, O, I)   y (N, H, W, O), cropped as SAME pads

    With dy = dL/dy:    dx = im2col(dy) w    dw = im2col(dy)^T x
    It is Conv2D's adjoint: conv and conv_dx change places, and in dw the two images change roles.
    """

    def __init__(self, params, name, geometry, inputs, outputs):
        super().__init__(params)
        self.g = geometry
        k = geometry.kernel
        # The reference counts outputs where He's rule counts inputs; we keep that, as it scales the first images.
        self.w = params.weight(f"{name}/w", (k, k, outputs, inputs), fan=k * k * outputs)

    def forward(self, x, moments=None):
        self.x = x
        y = self.like("y", (len(x), self.g.height, self.g.width, self.w.shape[2]), x)
        self.ops.conv_dx(x, self.w.value, self.g, y, moments)
        return y

    def backward(self, dy, want_dw=True):
        cols = self.ops.im2col(dy, self.g, self.buffers)
        if want_dw:
            with self.ops.branch("dw"):
                self.ops.conv_dw(cols, self.x, self.g, self.w.grad)
        dx = self.like("dx", self.x.shape, dy)
        self.ops.conv(cols, self.w.value, self.g, dx)
        return dx


class BatchNorm(Layer):
    """y = leaky(u), u = gamma n + beta, n = (x - mean) / sqrt(var + 1e-3)      x, y (..., C)

    mean, var: of the batch in training (biased, over all axes but the last), else moving averages of those.
    With dy = dL/dy, M = N H W rows, g = dy leaky'(u):
        dgamma = sum g n    dbeta = sum g
        dx = gamma / sqrt(var + 1e-3) (g - dbeta / M - n dgamma / M)    (in test mode: without the last two terms)
    The last two terms are there because mean and var are functions of every x of the channel. leaky'(u) is slope for
    u < 0, else 1. Derivation: docs/batch_norm.md. Source: Ioffe and Szegedy, arXiv 1502.03167.
    """

    def __init__(self, params, name, channels, slope=1):
        super().__init__(params)
        self.slope = slope
        self.gamma = params.constant(f"{name}/gamma", (channels,), 1)
        self.beta = params.constant(f"{name}/beta", (channels,), 0)
        self.moving = params.moving(f"{name}/moving", (2, channels), [[0], [1]])  # mean 0, variance 1

    def forward(self, x, train, moments=None):
        """moments (2, C): those of the batch, if the layer before has found them already."""
        self.x = x
        self.train = train
        if not train:
            moments = self.moving.value
        elif moments is None:
            moments = self.moments_array(x)
            self.ops.batch_moments(x, moments)
        self.moments = moments
        y = self.like("y", x.shape, x)
        self.ops.batch_norm(x, moments, self.gamma.value, self.beta.value, self.slope, y,
                            self.moving.value if train else None, DECAY)
        return y

    def moments_array(self, x):
        """Where a batch's moments go; the dtype is that of x."""
        return self.like("moments", self.moving.shape, x)

    def backward(self, dy, want_dw=True):
        dx = dy  # nobody reads dy again
        dgamma = self.gamma.grad if want_dw else self.like("unwanted dgamma", self.gamma.shape, dy)
        dbeta = self.beta.grad if want_dw else self.like("unwanted dbeta", self.beta.shape, dy)
        self.ops.batch_norm_dx(dy, self.x, self.moments, self.gamma.value, self.beta.value, self.slope, self.train,
                               dx, dgamma, dbeta)
        return dx


class Block:
    """affine -> batch norm -> leaky ReLU: the unit that both networks are made of.

    The affine layer finds the moments of its output too, since a GPU has the values at hand then.
    """

    def __init__(self, affine, params, name, channels, slope=LEAKY_SLOPE):
        self.affine = affine
        self.norm = BatchNorm(params, name, channels, slope)

    def forward(self, x, train):
        moments = self.norm.moments_array(x) if train else None
        y = self.affine.forward(x, moments)
        return self.norm.forward(y, train, moments)

    def backward(self, dy, want_dw=True, **options):
        """options: the affine layer's own."""
        dy = self.norm.backward(dy, want_dw)
        return self.affine.backward(dy, want_dw=want_dw, **options)


def dense_block(params, name, inputs, outputs, slope=LEAKY_SLOPE):
    return Block(Dense(params, name, inputs, outputs), params, name, outputs, slope)


def conv_block(params, name, size, inputs, outputs):
    """3x3, stride 2, from (height, width) = size to half of that."""
    conv = Conv2D(params, name, Geometry(*size, kernel=3, stride=2), inputs, outputs)
    return Block(conv, params, name, outputs)


def conv_transpose(params, name, size, inputs, outputs):
    """5x5, stride 2, to (height, width) = size from half of that."""
    return Conv2DTranspose(params, name, Geometry(*size, kernel=5, stride=2), inputs, outputs)


def conv_transpose_block(params, name, size, inputs, outputs):
    return Block(conv_transpose(params, name, size, inputs, outputs), params, name, outputs)
