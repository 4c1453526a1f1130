"""A checkpoint: one HDF5 file from which training goes on bit for bit.

    parameters/NAME  moving/NAME  adam/m/NAME  adam/v/NAME      arrays under the names that vae.py gives them
    history                                                     losses since the last line of metrics.csv
    attributes: step, seconds, config (JSON), minivae and numpy versions

Everything is addressed by name, so the layout of the flat buffers may change between versions.
"""

import json
import os
from dataclasses import asdict

import h5py
import numpy as np

import minivae
from minivae.errors import UserError


def model_arrays(vae):
    """{name in the file: the live array} of all that sampling needs."""
    arrays = {f"parameters/{p.name}": p.value for p in vae.params.trained}
    return arrays | {f"moving/{p.name}": p.value for p in vae.params.state}


def training_arrays(trainer):
    """{name in the file: the live array} of all that going on needs."""
    params, adam = trainer.vae.params, trainer.adam
    arrays = model_arrays(trainer.vae) | {"history": trainer.history}
    arrays |= {f"adam/m/{name}": view for name, view in params.views(adam.m).items()}
    return arrays | {f"adam/v/{name}": view for name, view in params.views(adam.v).items()}


def save(path, trainer, config, seconds):
    """Write beside, flush, rename: `path` is the old checkpoint or the new one, never a part of one."""
    beside = path.with_name(path.name + ".part")
    with h5py.File(beside, "w") as f:
        for name, array in training_arrays(trainer).items():
            f[name] = trainer.ops.to_host(array)
        f.attrs.update(step=trainer.step_count, seconds=seconds, config=json.dumps(asdict(config)),
                       minivae=minivae.__version__, numpy=np.__version__)
        f.flush()
    with open(beside, "rb") as f:
        os.fsync(f.fileno())
    os.replace(beside, path)


def load_model(path, vae):
    """Fill the model from `path`. UserError if it is not this model's checkpoint."""
    _read(path, vae.ops, model_arrays(vae))


def load_training(path, trainer):
    """Fill the trainer from `path` and return the seconds trained so far. UserError if it is not its checkpoint."""
    attributes = _read(path, trainer.ops, training_arrays(trainer))
    trainer.step_count = int(attributes["step"])
    trainer.adam.t[...] = trainer.step_count
    return float(attributes["seconds"])


def _read(path, ops, arrays):
    try:
        with h5py.File(path, "r") as f:
            for name, array in arrays.items():
                if name not in f or f[name].shape != array.shape:
                    raise UserError(f"{path} is a checkpoint of another model: {name} {array.shape} is not in it")
                array[...] = ops.xp.asarray(f[name][()])
            return dict(f.attrs)
    except FileNotFoundError as e:
        raise UserError(f"{path} is missing: this run has saved nothing yet; train it anew") from e
    except (OSError, KeyError) as e:
        raise UserError(f"{path} cannot be read as a checkpoint ({e})") from e
