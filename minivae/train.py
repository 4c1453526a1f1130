"""Training: the update, the evaluation, and the loop that logs, saves and draws."""

import signal
import sys
import time

import numpy as np
from tqdm import tqdm

from minivae import checkpoint, figures
from minivae.adam import Adam
from minivae.errors import UserError
from minivae.ops.philox import STREAMS, choose
from minivae.vae import VAE, Widths

TEST_IMAGES = 5000  # at most, of RandomState(0).permutation(test), in batches of TEST_BATCH, as the reference does
TEST_BATCH = 200


class Trainer:
    """The model, its optimizer and the device's copy of the data.

    index (log_every, N) int32 and history (log_every, 2) float64 hold one window of updates: which images each one
    takes, and the mean rec and kl that it found. The host writes the one and reads the other once a window; between,
    an update is device work only.
    """

    def __init__(self, config, dataset, ops, dtype=np.float32, widths=Widths()):
        self.config, self.ops = config, ops
        self.vae = VAE(config.shape, config.latent, ops, dtype, config.seed, config.kl, widths,
                       config.sigma)
        self.adam = Adam(self.vae.params, config.lr)
        self.images, self.test_images = dataset.train.images, test_subset(dataset.test.images)
        n, xp = config.batch_size, ops.xp
        self.device_images, self.device_test = xp.asarray(self.images), xp.asarray(self.test_images)
        self.index = xp.zeros((config.log_every, n), np.int32)
        self.history = xp.zeros((config.log_every, 2), np.float64)
        self.x, self.eps = xp.zeros((n, *config.shape), dtype), xp.zeros((n, config.latent), dtype)
        self.test_buffers = ops.Buffers()
        self.step_count = 0  # finished updates: adam.t on the host's side
        self.window = self.drawn = None  # the window whose images are in `index`; the one last drawn, and its images
        self._update = ops.capture(self.update)

    def step(self):
        """One update, counted. Images are drawn a window ahead: a device still has the last window's updates to do."""
        window, place = divmod(self.step_count, len(self.index))
        if self.window != window:
            self.index[...] = self.ops.xp.asarray(self.draw_batches(window))
            self.window = window
        self._update()
        self.step_count += 1
        if place == len(self.index) - 1:
            self.draw_batches(window + 1)

    def update(self):
        self.ops.gather(self.device_images, self.index, self.adam.t, self.x)
        self.ops.normal(self.config.seed, STREAMS["train"], self.adam.t, self.eps)
        rec, kl = self.vae.forward(self.x, self.eps)
        self.vae.backward()
        self.adam.update()
        self.ops.record(rec, kl, self.adam.t, self.history)

    def draw_batches(self, window):
        """Each update's images: without replacement within the batch, independent between batches."""
        if self.drawn is None or self.drawn[0] != window:
            steps = range(window * len(self.index), (window + 1) * len(self.index))
            n, population = self.config.batch_size, len(self.images)
            rows = [choose(self.config.seed, STREAMS["batch"], t, n, population) for t in steps]
            self.drawn = window, np.stack(rows)
        return self.drawn[1]

    def train_losses(self):
        """(rec, kl) in nats per image, averaged over the updates since the last full window."""
        done = (self.step_count - 1) % len(self.index) + 1
        return self.ops.to_host(self.history)[:done].mean(0)

    def failure(self):
        """The first update of the window whose losses are not finite, or None; it waits for the device.

        A gradient that is not finite shows in the next update's losses.
        """
        start = (self.step_count - 1) // len(self.history) * len(self.history)
        rows = self.ops.to_host(self.history)[: self.step_count - start]
        bad = np.flatnonzero(~np.isfinite(rows).all(1))
        return start + 1 + int(bad[0]) if len(bad) else None

    def test_losses(self):
        """(rec, kl) in nats per image on the test images: batch norm in test mode, z sampled, the same eps always."""
        total, n, ops = np.zeros(2), len(self.test_images), self.ops
        for batch, start in enumerate(range(0, n, TEST_BATCH)):
            rows = np.arange(start, min(start + TEST_BATCH, n), dtype=np.int32)[None]
            x = self.test_buffers("x", (rows.size, *self.config.shape), self.vae.dtype)
            eps = self.test_buffers("eps", (rows.size, self.config.latent), self.vae.dtype)
            t = ops.xp.zeros(1, np.int64)
            ops.gather(self.device_test, ops.xp.asarray(rows), t, x)
            ops.normal(self.config.seed, STREAMS["test"], t + batch, eps)
            losses = self.vae.forward(x, eps, train=False)
            total += [ops.to_host(loss).sum(dtype=np.float64) for loss in losses]
        return total / n


def test_subset(images):
    return images[np.random.RandomState(0).permutation(len(images))[:TEST_IMAGES]]


class Signals:
    """While it is entered, SIGINT and SIGTERM set `received` instead of ending the process; a second SIGINT ends it."""

    def __enter__(self):
        self.received = 0
        self.before = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _receive(self, number, frame):
        self.received = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_):
        for s, handler in self.before.items():
            signal.signal(s, handler)


def train(run, trainer, seconds=0.0):
    """Train `trainer` from where it stands to config.steps; everything worth keeping goes into the run directory.

    A signal ends it after the update at hand, saved and drawn. Returns the signal's number, 0 without one. UserError if
    a loss is not finite (the last checkpoint stays) or a file cannot be written.
    """
    with Signals() as signals:
        try:
            _train(run, trainer, seconds, signals)
            figures.draw_all(run, trainer)
        except OSError as e:
            raise UserError(f"cannot write into {run.folder} ({e}); make room, then: run.py resume {run.folder}") from e
    return signals.received


def _train(run, trainer, seconds, signals):
    config = run.config
    start = time.perf_counter() - seconds
    with tqdm(total=config.steps, initial=trainer.step_count, unit="update", disable=None) as bar:
        while trainer.step_count < config.steps and not signals.received:
            trainer.step()
            step, last = trainer.step_count, trainer.step_count == config.steps
            test = step % config.eval_every == 0 or last
            due_log = test or step % config.log_every == 0
            due_save = step % config.checkpoint_every == 0 or last or signals.received
            if (due_log or due_save) and (failed := trainer.failure()):
                raise UserError(f"the loss of update {failed} is not finite; {run.folder} keeps its last checkpoint: "
                                f"a smaller --lr usually helps")
            if due_log:
                log(run, trainer, test, time.perf_counter() - start, bar)
            if due_save:
                checkpoint.save(run / "checkpoint.h5", trainer, config, time.perf_counter() - start)
            bar.update()


def log(run, trainer, test, seconds, bar):
    """One row of metrics.csv, and the same on the screen."""
    rec, kl = trainer.train_losses()
    row = {"step": trainer.step_count, "seconds": seconds, "train_loss": rec + kl, "train_rec": rec, "train_kl": kl}
    line = f"update {trainer.step_count:6d}  {seconds:7.1f} s  train {rec + kl:7.2f} (rec {rec:.2f}, kl {kl:.2f})"
    if test:
        rec, kl = trainer.test_losses()
        row |= {"test_loss": rec + kl, "test_rec": rec, "test_kl": kl}
        line += f"  test {rec + kl:7.2f} (rec {rec:.2f}, kl {kl:.2f})"
    run.log(row)
    bar.set_postfix_str(f"train {row['train_loss']:.2f} nats/image", refresh=False)
    if test or bar.disable:
        bar.write(line + " nats/image", file=sys.stdout)
