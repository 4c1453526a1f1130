"""The loop around the step: it logs, evaluates, saves and draws, and no signal makes it lose a step."""

import contextlib
import math
import os
import signal
import threading
import time

from tqdm import tqdm

from minivae.training import checkpoint, figures, finite
from minivae.training.divergence import Divergence
from minivae.training.evaluation import Evaluation
from minivae.training.statistics import estimated

FIRST_PICTURES = 100  # the step after which a run can be looked at
WARM, TIMED = 5, 20  # steps of a process: from the first to the second, a step is timed


class Signals:
    """While it is entered, SIGINT, SIGTERM and SIGHUP are answered at once, and the first is kept in `received`.

    A second one changes nothing: what the first answer promises is done. One that the process was started to ignore, as
    nohup does with SIGHUP, stays ignored.
    """

    def __init__(self, answers=True):
        self.answers = answers  # of several ranks, one does

    def __enter__(self):
        self.received = 0
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # no other thread may handle signals
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number, frame):
        answer = b"\nstill saving and drawing\n" if self.received else b"\nstopping: saving and drawing\n"
        self.received = self.received or number
        if self.answers:
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(2, answer)  # print() would fail if the signal came while something was printed

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def train(run, trainer, test_images, seconds=0.0, test_labels=None):
    """Train from where `trainer` stands to config.steps; everything worth keeping goes into the run directory.

    seconds: how long the run was trained before. test_labels (N,) int32, for a model that is given labels. A signal
    ends the training after the present step, saved and drawn. Returns the signal's number, 0 without one. UserError if
    a step is not finite (the last checkpoint stays as it was) or a file cannot be written; OSError, once all is saved
    and drawn, if standard output cannot be written.
    """
    steps = run.config.steps
    bar = tqdm(total=steps, initial=trainer.step_count, unit="step", disable=None)
    with Signals(trainer.ranks.rank == 0) as signals, bar:
        loop = Loop(run, trainer, test_images, seconds, bar, test_labels)
        try:
            if trainer.step_count == 0 and loop.writes:  # a disk that cannot take it is told of at once
                checkpoint.save(run / "checkpoint.h5", trainer, run.config, seconds)
                tqdm.write("test losses use batch norm's moving averages, as the reference does: for the first few "
                           "hundred steps these trail the weights, and test losses are far above training losses")
            while not trainer.ranks.largest(signals.received) and trainer.step_count < steps:
                loop.step()
        except OSError:  # the reader of standard output has gone, or its disk is full
            trainer.ranks.largest(signal.SIGPIPE)  # the other ranks stop too
            loop.finish()
            raise
        loop.finish()
        return trainer.ranks.largest(signals.received)  # for which all ranks wait until rank 0 has drawn


class Loop:
    """What is done after each step of a run."""

    def __init__(self, run, trainer, test_images, seconds, bar, test_labels):
        self.run = run
        self.trainer = trainer
        self.test_images = test_images
        self.test_labels = test_labels
        self.evaluation = Evaluation(trainer.vae, test_images, run.config.seed, test_labels)
        self.first = trainer.step_count
        self.writes = trainer.ranks.rank == 0
        self.start = time.perf_counter() - seconds
        self.bar = bar
        self.saved = None  # the step of the last checkpoint that this process wrote
        losses = [row["train_loss"] for row in run.metrics() if "train_loss" in row] if self.writes else []
        self.divergence = Divergence(math.prod(trainer.config.shape), losses)
        self.warned = False  # of a divergence
        self.aside = 0.0  # seconds for what is not training

    def seconds(self):
        """How long the run has been trained, in this process and before."""
        return time.perf_counter() - self.start

    def step(self):
        """A step and what is due after it. All that ranks do together comes before what rank 0 alone does."""
        config = self.run.config
        trainer = self.trainer
        try:
            trainer.step()
        except FloatingPointError as e:
            raise finite.stop(self.run, trainer) from e
        step = trainer.step_count
        if step == 1:  # what is lost in the first window would pass for where it began
            self.divergence.diverged(sum(trainer.losses()))
        last = step == config.steps
        evaluate = last or step % config.eval_every == 0
        log = evaluate or step % config.log_every == 0
        save = step % config.checkpoint_every == 0
        draw = (evaluate or step == FIRST_PICTURES) and not last
        if log or save:
            finite.refuse_failure(self.run, trainer)
        if save or draw:
            self.estimate()
        if self.writes:
            self.write(log, evaluate, save, draw)

    def write(self, log, evaluate, save, draw):
        """What is due: a row of metrics.csv, with test losses in it, a checkpoint, pictures."""
        if log:
            self.log(evaluate)
        if save:
            self.save()
        if draw:
            self.draw()
        self.tell_time()
        self.bar.update()

    def finish(self):
        """Save and draw the last step, at whatever moment the end came."""
        finite.refuse_failure(self.run, self.trainer)
        self.estimate()
        if self.writes:
            if self.saved != self.trainer.step_count:
                self.save()
            self.draw()

    def estimate(self):
        """Find the statistics for test mode, which saving and drawing need."""
        with self.untimed(), estimated(self.trainer):
            pass

    def draw(self):
        with self.untimed(), estimated(self.trainer):
            figures.draw_all(self.run, self.trainer.vae, self.test_images, self.test_labels)

    @contextlib.contextmanager
    def untimed(self):
        """For what is no part of a step. On a GPU the steps before it must have been waited for."""
        start = time.perf_counter()
        yield
        self.aside += time.perf_counter() - start

    def tell_time(self):
        """After the first steps, how long the others will take."""
        taken = self.trainer.step_count - self.first
        left = self.run.config.steps - self.trainer.step_count
        if taken not in (WARM, TIMED) or not left:
            return
        self.trainer.losses()  # waits for a GPU
        trained = self.seconds() - self.aside
        if taken == WARM:
            self.warm = trained
            return
        a_step = (trained - self.warm) / (TIMED - WARM)
        tqdm.write(f"a step takes {a_step:.3g} s: about {tqdm.format_interval(left * a_step)} for "
                   f"the {left:,} steps that are left, and the time of evaluations")

    def save(self):
        with self.untimed():
            checkpoint.save(self.run / "checkpoint.h5", self.trainer, self.run.config, self.seconds())
        self.saved = self.trainer.step_count

    def log(self, evaluate):
        """One row of metrics.csv, and the same on the screen."""
        row = {"step": self.trainer.step_count, "seconds": self.seconds()}
        line = "step {step:6d}  {seconds:7.1f} s".format(**row)
        losses = {"train": self.trainer.losses()}
        if evaluate:
            with self.untimed():
                losses["test"] = self.evaluation.losses()
        for split, (rec, kl) in losses.items():
            row |= {f"{split}_loss": rec + kl, f"{split}_rec": rec, f"{split}_kl": kl}
            line += f"  {split} {rec + kl:7.2f} (rec {rec:.2f}, kl {kl:.2f})"
        self.run.log(row)
        if evaluate or self.bar.disable:
            tqdm.write(line + " nats/image")
        if row["step"] % self.run.config.log_every == 0:
            self.look_for_divergence(row["train_loss"])
        self.bar.set_postfix_str(f"train {row['train_loss']:.2f} nats/image", refresh=False)

    def look_for_divergence(self, loss):
        """Say once that the loss of a whole window has diverged."""
        best = self.divergence.best
        if self.divergence.diverged(loss) and not self.warned:
            self.warned = True
            tqdm.write(f"warning: training diverges: its loss was {best:.2f} nats/image and is {loss:.2f}, the mean of "
                       f"{self.run.config.log_every} steps; a smaller --lr usually helps")
