"""Where a run stopped being finite: the step is run again, and the first array that is not finite is named."""

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
    """The first array that is not finite in the step that takes trainer.x and trainer.eps, or None."""
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
        vae.forward(trainer.x, trainer.eps)
        vae.backward()
    except NotFinite as e:
        return str(e)
    if np.isfinite(float(vae.params.grads @ vae.params.grads)):
        return None
    largest = max(vae.params.trained, key=lambda p: float(abs(p.grad).max()))
    return f"the square of {largest.name}'s gradient"


def rewind(trainer, path, last):
    """Take the steps after the checkpoint again, checking each, until one is not finite; at the latest step `last`.

    Where checking each step would cost too much, a failure is seen late, when the parameters are long lost. Afterwards
    they are those before the failing step, and x and eps are that step's.
    """
    if path.exists():
        checkpoint.load_training(path, trainer)
    else:
        trainer.start_over()
    params = trainer.vae.params
    while trainer.step_count < last:
        before = params.values.copy()
        trainer.step()
        if trainer.failure() or not is_finite(trainer.ops, params.grads):
            break
    params.values[...] = before


def stop(run, trainer, step, late):
    """The UserError of step `step`, whose batch is saved in the run directory; late: it was seen some time after it."""
    path = run / "checkpoint.h5"
    if late:
        rewind(trainer, path, step)
        step = trainer.step_count
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
