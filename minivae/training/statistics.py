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
def estimated(trainer):
    """In this context the model's moving statistics are re-estimated ones; after it they are as before, to the bit.

    They come from the batches of the last 60 steps, or of all if there were fewer; before the first step they stay.
    """
    statistics = trainer.vae.params.moving_statistics
    kept = statistics.copy()
    try:
        if trainer.step_count and trainer.estimated_at != trainer.step_count:
            trainer.estimated = _mean(trainer, kept)
            trainer.estimated_at = trainer.step_count
        if trainer.step_count:
            statistics[...] = trainer.estimated
        yield
    finally:
        statistics[...] = kept


def _mean(trainer, kept):
    """A step moves a statistic s of a batch's value m to 0.99 s + 0.01 m; m is found from where it has moved to."""
    statistics = trainer.vae.params.moving_statistics
    steps = range(max(0, trainer.step_count - BATCHES), trainer.step_count)
    total = trainer.ops.xp.zeros(statistics.shape, np.float64)
    for step in steps:
        trainer.batches.prepare(step)
        trainer.adam.t[...] = step
        trainer.draw_batch()
        statistics[...] = kept
        trainer.vae.forward(trainer.x, trainer.eps)
        total += statistics
    trainer.adam.t[...] = trainer.step_count
    return (total / len(steps) - DECAY * kept) / (1 - DECAY)
