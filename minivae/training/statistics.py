"""Statistics for test mode that belong to the weights as they are: the mean over batches of what training mode finds.

A moving average trails the weights by about 1 / (1 - 0.99) = 100 steps, and a narrow p(x|z) pays for it. These are what
it would come to if the weights stood still. So a variance is the mean of the batches' variances too: what follows a
layer was trained on values divided by those, and they are a little less than the variance of all images together.
"""

import contextlib

import numpy as np

from minivae.layers import DECAY

BATCHES = 60


@contextlib.contextmanager
def in_place(vae, statistics):
    """In this context test mode takes `statistics`; after it the model's own are as before, to the bit."""
    live = vae.params.moving_statistics
    kept = live.copy()
    try:
        live[...] = statistics
        yield
    finally:
        live[...] = kept


def estimated(trainer):
    """The context of re-estimated statistics.

    They come from the batches of the last 60 steps, or of all if there were fewer; before the first step they are the
    moving ones.
    """
    if trainer.estimated_at != trainer.step_count:
        with in_place(trainer.vae, trainer.vae.params.moving_statistics):
            trainer.estimated = _mean(trainer)
        trainer.estimated_at = trainer.step_count
    return in_place(trainer.vae, trainer.estimated)


def _mean(trainer):
    """A step moves a statistic s of a batch's value m to 0.99 s + 0.01 m; m is found from where it has moved to."""
    statistics = trainer.vae.params.moving_statistics
    before = statistics.copy()
    total = trainer.ops.xp.zeros(statistics.shape, np.float64)
    steps = range(max(0, trainer.step_count - BATCHES), trainer.step_count)
    for step in steps:
        trainer.batches.prepare(step)
        trainer.adam.t[...] = step
        trainer.draw_batch()
        statistics[...] = before
        trainer.vae.forward(trainer.x, trainer.eps, labels=trainer.labels)
        total += statistics
    trainer.adam.t[...] = trainer.step_count
    return (total / len(steps) - DECAY * before) / (1 - DECAY) if steps else before
