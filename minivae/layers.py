"""The layers: each stores what its backward needs, assigns its gradients, and returns dL/dx.

dy, dx, dw, ... are always dL/d of that. A layer runs once a step, so gradients are assigned, not accumulated. Arrays
that a layer returns are its own and are overwritten by its next call with the same shapes.

An affine layer before a batch norm has no bias: batch norm subtracts the channel's mean, the bias with it, so its
gradient is exactly zero. beta does its work.
"""

from minivae.ops.geometry import Geometry

LEAKY_SLOPE = 0.2
DECAY = 0.99  # of the moving statistics


class Layer:
    """What all layers share: the operations of their device, and buffers allocated once."""

    def __init__(self, params):
        self.ops, self.buffers = params.ops, params.ops.Buffers()

    def like(self, name, shape, x):
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
        """want_dw=False leaves w's gradient as it was, where only the input's is wanted."""
        if want_dw:
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
        self.g, k = geometry, geometry.kernel
        self.w = params.weight(f"{name}/w", (k, k, inputs, outputs), fan=k * k * inputs)

    def forward(self, x, moments=None):
        self.x_shape = x.shape
        self.cols = self.ops.im2col(x, self.g, self.buffers)
        y = self.like("y", (len(x), self.g.out_height, self.g.out_width, self.w.shape[3]), x)
        self.ops.conv(self.cols, self.w.value, self.g, y, moments)
        return y

    def backward(self, dy, want_dx=True):
        """want_dx=False for a first layer, whose input has no use for a gradient."""
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
        self.g, k = geometry, geometry.kernel
        # The reference counts the outputs where He's rule counts inputs; kept, since it sets the first outputs' scale.
        self.w = params.weight(f"{name}/w", (k, k, outputs, inputs), fan=k * k * outputs)

    def forward(self, x, moments=None):
        self.x = x
        y = self.like("y", (len(x), self.g.height, self.g.width, self.w.shape[2]), x)
        self.ops.conv_dx(x, self.w.value, self.g, y, moments)
        return y

    def backward(self, dy, want_dw=True):
        """want_dw as in Dense."""
        cols = self.ops.im2col(dy, self.g, self.buffers)
        if want_dw:
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
    Why the two terms: mean and var are functions of every x of the channel. Derivation: docs/batch_norm.md.
    Source: Ioffe and Szegedy, arXiv 1502.03167; leaky'(u) is 1 for u > 0, slope below.
    """

    def __init__(self, params, name, channels, slope=1):
        super().__init__(params)
        self.slope = slope
        self.gamma = params.constant(f"{name}/gamma", (channels,), 1)
        self.beta = params.constant(f"{name}/beta", (channels,), 0)
        self.moving = params.moving(f"{name}/moving", (2, channels), [[0], [1]])  # mean 0, variance 1
        self.moments = None

    def forward(self, x, train):
        """The batch's moments must lie in batch_moments(x.dtype) already: the affine layer before computes them."""
        self.x, self.train = x, train
        self.moments = self.batch_moments(x.dtype) if train else self.moving.value
        y = self.like("y", x.shape, x)
        self.ops.batch_norm(x, self.moments, self.gamma.value, self.beta.value, self.slope, y,
                            self.moving.value if train else None, DECAY)
        return y

    def batch_moments(self, dtype):
        return self.buffers("moments", self.moving.shape, dtype)

    def backward(self, dy):
        dx = dy  # nobody reads dy again
        self.ops.batch_norm_dx(dy, self.x, self.moments, self.gamma.value, self.beta.value, self.slope, self.train,
                               dx, self.gamma.grad, self.beta.grad)
        return dx


class Block:
    """affine -> batch norm -> leaky ReLU: the unit both networks are made of.

    The affine layer is asked for its output's moments, which it can have while the values are still at hand.
    """

    def __init__(self, affine, params, name, slope=LEAKY_SLOPE):
        self.affine, self.norm = affine, BatchNorm(params, name, self._channels(affine), slope)

    @staticmethod
    def _channels(affine):
        return affine.w.shape[2] if isinstance(affine, Conv2DTranspose) else affine.w.shape[-1]

    def forward(self, x, train):
        moments = self.norm.batch_moments(x.dtype) if train else None
        return self.norm.forward(self.affine.forward(x, moments), train)

    def backward(self, dy, **options):
        return self.affine.backward(self.norm.backward(dy), **options)


def dense_block(params, name, inputs, outputs, slope=LEAKY_SLOPE):
    return Block(Dense(params, name, inputs, outputs), params, name, slope)


def conv_block(params, name, size, inputs, outputs):
    """3x3, stride 2, from (height, width) = size to half of that."""
    return Block(Conv2D(params, name, Geometry(*size, kernel=3, stride=2), inputs, outputs), params, name)


def conv_transpose(params, name, size, inputs, outputs):
    """5x5, stride 2, to (height, width) = size from half of that."""
    return Conv2DTranspose(params, name, Geometry(*size, kernel=5, stride=2), inputs, outputs)


def conv_transpose_block(params, name, size, inputs, outputs):
    return Block(conv_transpose(params, name, size, inputs, outputs), params, name)
