"""Where training stopped being finite: the first array that was not, found by making the update again."""

import inspect

import numpy as np

from minivae.errors import UserError
from minivae.files import replacing
from minivae.training import checkpoint


class Found(Exception):
    """The first array that is not finite, as words."""


class Watched:
    """The operations; each looks, when it is done, at every array that it was given. Found is raised at the first one.

    Every result of the model passes through an operation, so none is missed; `names` {id: name} has the parameters and
    their gradients, one of which tells the layer.
    """

    def __init__(self, ops, names):
        self.ops, self.names = ops, names

    def __getattr__(self, name):
        op = getattr(self.ops, name)
        return self._watched(name, op) if inspect.isfunction(op) else op

    def _watched(self, name, op):
        def watched(*args, **options):
            result = op(*args, **options)
            given = inspect.signature(op).bind(*args, **options).arguments
            names = {id(array): argument for argument, array in given.items()}  # one array twice: its last name
            for array in given.values():
                if isinstance(array, self.ops.xp.ndarray) and not is_finite(self.ops, array):
                    layers = [self.names[key].rpartition("/")[0] for key in names if key in self.names]
                    raise Found(" of ".join([names[id(array)], *layers[:1]]) + f" (operation {name})")
            return result

        return watched


def is_finite(ops, array):
    return bool(ops.xp.isfinite(array).all())


def first_failure(trainer):
    """The first array that is not finite in the update of trainer.x and trainer.eps from the present parameters."""
    params, names = trainer.vae.params, {}
    for p in params.trained:
        if not is_finite(trainer.ops, p.value):
            return f"parameter {p.name}"
    watched = Watched(trainer.ops, names)
    vae = trainer.build(watched)
    vae.params.values[...] = params.values
    names |= {id(array): p.name for p in vae.params.trained for array in (p.value, p.grad)}
    try:
        vae.forward(trainer.x, trainer.eps)
        vae.backward()
    except Found as e:
        return str(e)
    if np.isfinite(float(vae.params.grads @ vae.params.grads)):
        return "nothing that is so when the update is made again"
    largest = max(vae.params.trained, key=lambda p: float(abs(p.grad).max()))
    return f"the square of {largest.name}'s gradient"


def rewind(trainer, path, last):
    """Make the updates after the checkpoint again, each looked at, until one is not finite; at the latest `last`.

    Where looking at each update would cost too much, a failure is seen late, the parameters long lost. Afterwards they
    are those before that update, and x and eps are its own.
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
    """The UserError of update `step`, whose batch is saved in the run directory; late: some time after it."""
    path = run / "checkpoint.h5"
    if late:
        rewind(trainer, path, step)
        step = trainer.step_count
    array = first_failure(trainer)
    to_host, batch = trainer.ops.to_host, run / "not-finite.npz"
    images = np.round((to_host(trainer.x) + 1) * 127.5).astype(np.uint8)
    with replacing(batch) as beside, open(beside, "wb") as f:
        np.savez(f, images=images, eps=to_host(trainer.eps), step=step)
    return UserError(f"update {step} is not finite, first in {array}; its batch is in {batch}, the last checkpoint "
                     "is as it was: a smaller --lr usually helps, or a larger --sigma if it is small")
