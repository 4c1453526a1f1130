"""Training: the update, the evaluation, and the loop that logs, saves and draws."""

import math
import os
import signal
import sys
import time

import numpy as np
from tqdm import tqdm

from minivae.adam import Adam
from minivae.images.data import test_subset
from minivae.images.stream import CHUNK_BYTES, Prefetcher, Streamed
from minivae.ops.philox import STREAMS, choose
from minivae.training import checkpoint, figures, finite
from minivae.vae import VAE, Widths

TEST_BATCH = 200  # as the reference has it
LONGEST_WINDOW = 1000  # updates whose images are drawn at a time


class Trainer:
    """The model, its optimizer and the device's copy of the data.

    index (S, N) int32 says which of device_images each update of a window takes, history (log_every, 2) float64 what
    mean rec and kl the updates since the last line found. The host writes the one and reads the other once a window;
    between, an update is device work only. Images too large for the host's memory, or for half of what is free on a
    GPU, are on the device a window at a time.
    """

    def __init__(self, config, dataset, ops, dtype=np.float32, widths=Widths()):
        self.config, self.ops = config, ops
        self.build = lambda ops: VAE(config.shape, config.latent, ops, dtype, config.seed, config.kl, widths,
                                     config.sigma)
        self.vae = self.build(ops)
        self.adam = Adam(self.vae.params, config.lr)
        self.images, self.test_images = dataset.train.images, test_subset(dataset.test.images)
        n, xp = config.batch_size, ops.xp
        self.device_test = xp.asarray(self.test_images)
        updates = min(config.log_every, LONGEST_WINDOW)
        if isinstance(self.images, Streamed) or xp is not np and 2 * self.images.nbytes > ops.Landing.room():
            updates = max(1, min(updates, CHUNK_BYTES // (n * math.prod(config.shape))))
            self.index = xp.arange(updates * n, dtype=np.int32).reshape(updates, n)
            self.device_images = self.changing = xp.zeros((updates * n, *config.shape), np.uint8)
            make = self.draw_images
        else:
            self.index = self.changing = xp.zeros((updates, n), np.int32)
            self.device_images = xp.asarray(self.images)
            make = self.draw_batches
        if xp is np:
            self.ahead = Prefetcher(make, lambda made: np.copyto(self.changing, made))
        else:
            landing = ops.Landing(self.changing)
            self.ahead = Prefetcher(lambda window: landing.fill(make(window)), lambda _: landing.take())
        self.history = xp.zeros((config.log_every, 2), np.float64)
        self.x, self.eps = xp.zeros((n, *config.shape), dtype), xp.zeros((n, config.latent), dtype)
        self.test_buffers = ops.Buffers()
        self.step_count = 0  # finished updates: adam.t on the host's side
        self.window = None  # the window that is on the device
        self.watched = xp is np  # looking at an update costs nothing that the CPU would notice; a GPU would wait
        self._update = ops.capture(self.update)

    def step(self):
        """One update, counted. FloatingPointError if it is watched and not finite; no parameter has changed then."""
        window = self.step_count // len(self.index)
        if self.window != window:
            self.ahead(window)
            self.window = window
        self._update()
        self.step_count += 1

    def update(self):
        self.ops.gather(self.device_images, self.index, self.adam.t, self.x)
        self.ops.normal(self.config.seed, STREAMS["train"], self.adam.t, self.eps)
        rec, kl = self.vae.forward(self.x, self.eps)
        self.vae.backward()
        if self.watched:
            grads = self.vae.params.grads  # Adam squares them: their squares must be finite too
            if not np.isfinite(rec.sum() + kl.sum() + np.dot(grads, grads)):
                raise FloatingPointError
        self.adam.update()
        self.ops.record(rec, kl, self.adam.t, self.history)

    def draw_batches(self, window):
        """The images (S, N) of each update: without replacement within the batch, independent between batches."""
        steps = range(window * len(self.index), (window + 1) * len(self.index))
        n, population = self.config.batch_size, len(self.images)
        return np.stack([choose(self.config.seed, STREAMS["batch"], t, n, population) for t in steps])

    def draw_images(self, window):
        return self.images[self.draw_batches(window).reshape(-1)]

    def start_over(self):
        """As before the first update."""
        fresh = self.build(self.ops).params
        self.vae.params.values[...], self.vae.params.moving_statistics[...] = fresh.values, fresh.moving_statistics
        for array in (self.adam.m, self.adam.v, self.adam.t, self.history):
            array[...] = 0
        self.step_count = 0

    def train_losses(self):
        """(rec, kl) in nats per image, averaged over the updates since the last line that was due."""
        done = (self.step_count - 1) % len(self.history) + 1
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


class Signals:
    """While it is entered, SIGINT and SIGTERM set `received` instead of ending the process; a second SIGINT ends it."""

    def __enter__(self):
        self.received = 0
        self.before = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _receive(self, number, frame):
        if self.received and number == signal.SIGINT:  # an exception could be raised where nobody lets it through
            os.write(2, b"\nerror: interrupted; a run goes on from its last checkpoint: run.py resume RUN\n")
            os._exit(128 + number)
        self.received = number

    def __exit__(self, *_):
        for s, handler in self.before.items():
            signal.signal(s, handler)


def train(run, trainer, seconds=0.0):
    """Train `trainer` from where it stands to config.steps; everything worth keeping goes into the run directory.

    A signal ends it after the update at hand, saved and drawn. Returns the signal's number, 0 without one. UserError if
    an update is not finite (the last checkpoint stays) or a file cannot be written.
    """
    with Signals() as signals:
        _train(run, trainer, seconds, signals)
        figures.draw_all(run, trainer)
    return signals.received


def _train(run, trainer, seconds, signals):
    config, saved = run.config, None
    start = time.perf_counter() - seconds

    def save():
        checkpoint.save(run / "checkpoint.h5", trainer, config, time.perf_counter() - start)
        return trainer.step_count

    with tqdm(total=config.steps, initial=trainer.step_count, unit="update", disable=None) as bar:
        while trainer.step_count < config.steps and not signals.received:
            try:
                trainer.step()
            except FloatingPointError as e:
                raise finite.stop(run, trainer, trainer.step_count + 1, late=False) from e
            step = trainer.step_count
            test = step % config.eval_every == 0 or step == config.steps
            due_log, due_save = test or step % config.log_every == 0, step % config.checkpoint_every == 0
            if due_log or due_save:
                refuse_failure(run, trainer)
            if due_log:
                log(run, trainer, test, time.perf_counter() - start, bar)
            if due_save:
                saved = save()
            bar.update()
        if saved != trainer.step_count:  # the end, or a signal, at whatever moment it came
            refuse_failure(run, trainer)
            save()


def refuse_failure(run, trainer):
    """UserError if losses since the last line are not finite, or by a gradient that was not, the parameters."""
    failed = trainer.failure()
    if not failed and not finite.is_finite(trainer.ops, trainer.vae.params.values):
        failed = trainer.step_count
    if failed:
        raise finite.stop(run, trainer, failed, late=True)


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
