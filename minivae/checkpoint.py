"""A checkpoint: one HDF5 file from which training goes on bit for bit.

    parameters/NAME  moving/NAME  adam/m/NAME  adam/v/NAME      arrays under the names that vae.py gives them
    history                                                     losses since the last line of metrics.csv
    attributes: step, seconds, config (JSON), minivae and numpy versions

Everything is addressed by name, so the layout of the flat buffers may change between versions. The file's first 512
bytes, which HDF5 leaves to its users, hold the sha256 of all the others: no byte can change unnoticed.
"""

import hashlib
import json
import os
from dataclasses import asdict

import h5py
import numpy as np

import minivae
from minivae.errors import UserError

SEAL = 512  # bytes of the HDF5 user block
PREVIOUS = "checkpoint-previous.h5"


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
    """Replace `path`, keeping the old one as checkpoint-previous.h5. UserError if it cannot be written.

    The new file is written beside, read back and only then renamed; whenever the process dies, `path` is whole.
    """
    beside, previous = path.with_name(path.name + ".part"), path.with_name(PREVIOUS)
    try:
        with h5py.File(beside, "w", userblock_size=SEAL) as f:
            for name, array in training_arrays(trainer).items():
                f[name] = trainer.ops.to_host(array)
            f.attrs.update(step=trainer.step_count, seconds=seconds, config=json.dumps(asdict(config)),
                           minivae=minivae.__version__, numpy=np.__version__)
        with open(beside, "r+b") as f:
            f.write(_seal(f))
            f.flush()
            os.fsync(f.fileno())
        _verify(beside)
        if path.exists():
            link = previous.with_name(PREVIOUS + ".part")
            link.unlink(missing_ok=True)
            os.link(path, link)
            os.replace(link, previous)
        os.replace(beside, path)
    except (OSError, RuntimeError) as e:  # h5py reports a full disk as either
        beside.unlink(missing_ok=True)
        raise UserError(f"cannot write {path} ({e}); the one before it is untouched: make room, then resume") from e


def _seal(f):
    """The first SEAL bytes of a checkpoint open for reading: the hash of the others; f is left at its start."""
    f.seek(SEAL)
    digest = hashlib.file_digest(f, "sha256").hexdigest()
    f.seek(0)
    return f"minivae checkpoint, sha256 of what follows: {digest}\n".encode().ljust(SEAL, b"\0")


def _verify(path):
    with open(path, "rb") as f:
        seal = _seal(f)
        if f.read(SEAL) != seal:
            raise OSError("its content does not match its sha256")


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
        _verify(path)
        with h5py.File(path, "r") as f:
            for name, array in arrays.items():
                if name not in f or f[name].shape != array.shape:
                    raise UserError(f"{path} is a checkpoint of another model: {name} {array.shape} is not in it")
            for name, array in arrays.items():
                array[...] = ops.xp.asarray(f[name][()])
            return dict(f.attrs)
    except FileNotFoundError as e:
        raise UserError(f"{path} is missing: this run has saved nothing yet; train it anew") from e
    except OSError as e:
        raise UserError(f"{path} is damaged ({e}); {_advice(path.with_name(PREVIOUS))}") from e


def _advice(previous):
    try:
        _verify(previous)
    except OSError:
        return "there is no good older one beside it: train anew"
    return f"the one before it is good: to go on from there, copy {previous} over it"
