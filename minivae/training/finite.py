"""Where a run stopped being finite: the step is run again, and the first array that is not finite is named."""

import contextlib
import inspect

import numpy as np

from minivae.errors import UserError, run_command
from minivae.files import replacing
from minivae.ops import HALF_RANGE
from minivae.training import checkpoint


class NotFinite(Exception):
    """The first array that is not finite, as words."""


class CheckedOps:
    """The operations; each, when it is done, looks at every array that it was given, and raises NotFinite at the first.

    Every result of the model passes through an operation, so none is missed. names {id: name} has the parameters and
    their gradients: one of them among an operation's arguments tells the layer.
    """

    def __init__(self, ops, names):
        self.ops = ops
        self.names = names

    def __getattr__(self, name):
        op = getattr(self.ops, name)
        return self._checked(name, op) if inspect.isfunction(op) else op

    def _checked(self, name, op):
        def checked(*args, **options):
            result = op(*args, **options)
            given = inspect.signature(op).bind(*args, **options).arguments
            names = {id(array): argument for argument, array in given.items()}  # one array twice: its last name
            for array in given.values():
                if isinstance(array, self.ops.xp.ndarray) and not is_finite(self.ops, array):
                    layers = [self.names[key].rpartition("/")[0] for key in names if key in self.names]
                    raise NotFinite(" of ".join([names[id(array)], *layers[:1]]) + f" (operation {name})")
            return result

        return checked


def is_finite(ops, array):
    return bool(ops.xp.isfinite(array).all())


def first_failure(trainer):
    """The first array that is not finite in the step that takes trainer.x, eps and labels, or None."""
    params = trainer.vae.params
    for p in params.trained:
        if not is_finite(trainer.ops, p.value):
            return f"parameter {p.name}"
    names = {}
    vae = trainer.build(CheckedOps(trainer.ops, names))
    vae.params.values[...] = params.values
    for p in vae.params.trained:
        names[id(p.value)] = names[id(p.grad)] = p.name
    try:
        vae.forward(trainer.x, trainer.eps, labels=trainer.labels)
        vae.backward()
    except NotFinite as e:
        return str(e)
    if np.isfinite(float(vae.params.grads @ vae.params.grads)):
        return None
    largest = max(vae.params.trained, key=lambda p: float(abs(p.grad).max()))
    return f"the square of {largest.name}'s gradient"


def refuse_failure(run, trainer):
    """UserError if recent losses are not finite or, by the last step's gradient, the parameters.

    Where steps are not checked, the failing one may lie far back. The steps after the last
    checkpoint are then taken again, each checked, until it comes; at the latest it is the last.
    """
    if np.isfinite(trainer.losses()).all() and is_finite(trainer.ops, trainer.vae.params.values):
        return
    last = trainer.step_count
    checkpoint.load_training(run / "checkpoint.h5", trainer)
    trainer.check_each_step()
    with contextlib.suppress(FloatingPointError):
        while trainer.step_count < last - 1:
            trainer.step()
    raise stop(run, trainer)


def stop(run, trainer):
    """The UserError of the step after trainer.step_count; its batch is saved in the run directory."""
    if trainer.ranks.rank:
        trainer.ranks.barrier()  # to which rank 0 does not come: it ends all
    trainer = trainer.alone()
    step = trainer.step_count + 1
    trainer.batches.prepare(trainer.step_count)
    trainer.draw_batch()
    array = first_failure(trainer)
    to_host = trainer.ops.to_host
    images = np.round((to_host(trainer.x) + 1) * HALF_RANGE).astype(np.uint8)
    batch = run / "not-finite.npz"
    with replacing(batch) as beside, open(beside, "wb") as f:
        np.savez(f, images=images, eps=to_host(trainer.eps), step=step)
    kept = f"its batch is in {batch}, the last checkpoint is as it was"
    if array is None:
        return UserError(f"step {step} was not finite, but was finite when it was run again, so memory or a processor "
                         f"may be faulty; {kept}: {run_command('resume', run.folder)} goes on from there")
    return UserError(f"step {step} is not finite, first in {array}; {kept}: a smaller --lr usually helps, or a larger "
                     "--sigma if it is small")
