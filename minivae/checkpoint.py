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


def arrays_of(trainer):
    """{name in the file: the live array}, for writing and for reading back."""
    params, adam = trainer.vae.params, trainer.adam
    arrays = {f"parameters/{p.name}": p.value for p in params.trained}
    arrays |= {f"moving/{p.name}": p.value for p in params.state}
    arrays |= {f"adam/m/{name}": view for name, view in params.views(adam.m).items()}
    arrays |= {f"adam/v/{name}": view for name, view in params.views(adam.v).items()}
    return arrays | {"history": trainer.history}


def save(path, trainer, config, seconds):
    """Write beside, flush, rename: `path` is the old checkpoint or the new one, never a part of one."""
    beside = path.with_name(path.name + ".part")
    with h5py.File(beside, "w") as f:
        for name, array in arrays_of(trainer).items():
            f[name] = trainer.ops.to_host(array)
        f.attrs.update(step=trainer.step_count, seconds=seconds, config=json.dumps(asdict(config)),
                       minivae=minivae.__version__, numpy=np.__version__)
        f.flush()
    with open(beside, "rb") as f:
        os.fsync(f.fileno())
    os.replace(beside, path)


def load(path, trainer):
    """Fill the trainer from `path` and return the seconds trained so far. UserError if it is not its checkpoint."""
    try:
        with h5py.File(path, "r") as f:
            for name, array in arrays_of(trainer).items():
                if name not in f or f[name].shape != array.shape:
                    raise UserError(f"{path} is a checkpoint of another model: {name} {array.shape} is not in it")
                array[...] = trainer.ops.xp.asarray(f[name][()])
            trainer.step_count = int(f.attrs["step"])
            trainer.adam.t[...] = trainer.step_count
            return float(f.attrs["seconds"])
    except FileNotFoundError as e:
        raise UserError(f"{path} is missing: this run has saved nothing to go on from") from e
    except (OSError, KeyError) as e:
        raise UserError(f"{path} cannot be read as a checkpoint ({e})") from e
