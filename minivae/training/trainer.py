"""The training step, and everything that it changes."""

import math

import numpy as np

from minivae.adam import Adam
from minivae.ops.philox import STREAMS
from minivae.training.batches import Batches
from minivae.training.ranks import Alone
from minivae.vae import VAE, Widths

START_BYTES = 7_000_000  # of training images, at most, from which a fitted sigma starts


class Trainer:
    """The model, its optimizer and its batches; step() trains on one batch, of which each of `ranks` has its shard.

    A step is device work only: history (log_every, 2) float64 keeps the mean rec and kl of the steps since a line of
    metrics.csv was last due on the device, so that the host need not wait for each.
    """

    def __init__(self, config, images, ops, dtype=np.float32, widths=Widths(), labels=None, ranks=Alone()):
        self.config = config
        self.device = ops
        self.ranks = ranks
        self.ops = ops = ranks.operations(ops, config.batch_size)
        self.dtype = dtype
        self.widths = widths
        self.vae = self.build(ops)
        self.vae.start(images[:: -(-len(images) * images[:1].nbytes // START_BYTES)])
        self.adam = Adam(self.vae.params, config.lr)
        self.rate = config.lr  # adam.lr, on the host
        shard = ranks.shard(config.batch_size)
        self.batches = Batches(images, config, ops, shard, labels)
        self.history = ops.xp.zeros((config.log_every, 2), np.float64)
        self.x = ops.xp.zeros((shard.stop - shard.start, *config.shape), dtype)
        self.noise = ops.xp.zeros((config.batch_size, config.latent), dtype)
        self.eps = self.noise[shard]
        self.first_value = shard.start * math.prod(config.shape)  # of x, among those of the whole batch
        self.labels = None if labels is None else ops.xp.zeros(len(self.x), np.int32)
        self.whole = ops.xp.zeros((2, config.batch_size), dtype)
        self.step_count = 0  # finished steps: adam.t, on the host
        self.estimated_at = None  # the step after which statistics.estimated found what it keeps here
        self.check_each = ops.SYNCHRONOUS  # a GPU would have to be waited for
        self._step = ops.capture(self.device_step)
        self.begin_together()

    def begin_together(self):
        """Every rank goes on from what rank 0 has."""
        params, adam = self.vae.params, self.adam
        for array in (params.values, params.moving_statistics, adam.m, adam.v, adam.t, self.history):
            self.ranks.broadcast(array)
        self.step_count = int(adam.t[0])

    def alone(self):
        """A Trainer of whole batches that has made the same steps."""
        if self.ranks.size == 1:
            return self
        other = Trainer(self.config, self.batches.images, self.device, self.dtype, self.widths,
                        self.batches.labels)
        other.vae.params.values[...] = self.vae.params.values
        other.adam.t[...] = self.adam.t
        other.step_count = self.step_count
        return other

    def build(self, ops):
        """The model as it is before the first step, on these operations."""
        c = self.config
        return VAE(c.shape, c.latent, ops, self.dtype, c.seed, c.kl, self.widths, c.sigma, len(c.label_names))

    def check_each_step(self):
        """From now on look at each step before it changes a parameter, which a captured one cannot do."""
        self.check_each = True
        self._step = self.device_step

    def step(self):
        """One step. FloatingPointError if each is checked and this one is not finite; no parameter has changed then."""
        self.batches.prepare(self.step_count)
        rate = self.config.learning_rate(self.step_count)
        if rate != self.rate:
            self.adam.lr[...] = rate
            self.rate = rate
        self._step()
        self.step_count += 1

    def draw_batch(self):
        """x, eps and labels of the step after step_count, whose images must have been prepared."""
        with self.ops.branch("noise"):
            self.ops.normal(self.config.seed, STREAMS["train"], self.adam.t, self.noise)
        self.batches.gather(self.adam.t, self.x)
        if self.vae.dequantized:
            self.ops.dequantize(self.config.seed, STREAMS["train pixels"], self.adam.t, self.x, self.first_value)
        if self.labels is not None:
            self.batches.gather_labels(self.adam.t, self.labels)
        self.ops.join("noise")

    def device_step(self):
        self.draw_batch()
        rec, kl = self.vae.forward(self.x, self.eps, labels=self.labels)
        self.vae.backward(ready=None if self.check_each else self.update_beside)
        self.rec = self.ranks.gather(rec, self.whole[0])
        self.kl = self.ranks.gather(kl, self.whole[1])
        self.ops.join("adam")  # which has read t
        self.update_beside()
        self.ops.record(self.rec, self.kl, self.adam.t, self.history)

    def update_beside(self, first=None):
        """Update the parameters from `first` on that are left, beside what follows."""
        with self.ops.branch("adam"):
            self.ops.join("dw")
            grads = self.vae.params.grads[first.start if first else 0 : self.adam.end]
            self.ranks.all_reduce(grads)
            # Adam squares the gradients: their squares must be finite too
            if self.check_each and not math.isfinite(float(self.rec.sum() + self.kl.sum() + grads @ grads)):
                raise FloatingPointError
            self.adam.update(first)

    def losses(self):
        """(rec, kl) in nats per image, a mean over the steps since a line was last due; it waits for the device."""
        done = (self.step_count - 1) % len(self.history) + 1
        return self.ops.to_host(self.history)[:done].mean(0)
