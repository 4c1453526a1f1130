"""All parameters in one flat buffer, all gradients in another, the moving statistics in a third.

A layer declares what it needs and keeps the returned Parameter; allocate() then makes three arrays and hands out
named views of them ("enc/conv1/w"). Adam is one pass over two flat arrays and a checkpoint reads views by name. Each
view starts on a 16-byte boundary, so that a GPU kernel may load four floats at a time.
"""

import math

import numpy as np

from minivae.ops import philox


class Parameter:
    """A named array `value`, at `start` of a flat one, and its gradient `grad`, None for state (moving statistics)."""

    def __init__(self, name, shape, initial):
        self.name = name
        self.shape = shape
        self.initial = initial
        self.value = self.grad = None


class Parameters:
    """Declare, then allocate. dtype float32 to train, float64 to check gradients; seed decides the initial weights."""

    def __init__(self, ops, dtype=np.float32, seed=0):
        self.ops = ops
        self.dtype = np.dtype(dtype)
        self.seed = seed
        self.trained = []
        self.state = []

    def weight(self, name, shape, fan):
        """A trained Parameter drawn from a normal of sd sqrt(1.3 * 2 / fan), truncated at 2 sd."""
        draw = philox.truncated_normals(self.seed, philox.STREAMS["init"], len(self.trained), math.prod(shape))
        return self._declare(self.trained, name, shape, math.sqrt(1.3 * 2 / fan) * draw.reshape(shape))

    def constant(self, name, shape, value):
        """A trained Parameter that starts at one value."""
        return self._declare(self.trained, name, shape, value)

    def moving(self, name, shape, initial):
        """A moving average that starts at the array `initial`: kept, checkpointed, not trained."""
        return self._declare(self.state, name, shape, np.asarray(initial))

    def _declare(self, kind, name, shape, initial):
        kind.append(Parameter(name, shape, initial))
        return kind[-1]

    def allocate(self):
        """Make the flat arrays values, grads and moving_statistics, and give every Parameter its views of them."""
        self.values, values = self._flat(self.trained)
        self.grads, grads = self._flat(self.trained)
        self.moving_statistics, statistics = self._flat(self.state)
        for p, p.value, p.grad in zip(self.trained, values, grads, strict=True):
            p.value[...] = self.ops.xp.asarray(p.initial)
        for p, p.value in zip(self.state, statistics, strict=True):
            p.value[...] = self.ops.xp.asarray(p.initial)
        for p in self.trained + self.state:
            del p.initial

    def views(self, flat):
        """{name: view} of a flat array laid out as `values` is: Adam's m and v by the parameters' names."""
        return {p.name: view for p, view in zip(self.trained, self._views(flat, self.trained), strict=True)}

    def _flat(self, kind):
        flat = self.ops.xp.zeros(sum(self._padded(p) for p in kind), self.dtype)
        return flat, self._views(flat, kind)

    def _views(self, flat, kind):
        views = []
        start = 0
        for p in kind:
            p.start = start
            views.append(flat[start : start + math.prod(p.shape)].reshape(p.shape))
            start += self._padded(p)
        return views

    def _padded(self, p):
        step = 16 // self.dtype.itemsize
        return -(-math.prod(p.shape) // step) * step
