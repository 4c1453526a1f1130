"""A checkpoint: one HDF5 file from which training goes on bit for bit.

    parameters/NAME  moving/NAME  adam/m/NAME  adam/v/NAME      arrays under the names that vae.py gives them
    estimated/NAME                                              the moving ones re-estimated for test mode
    history                                                     losses since the last line of metrics.csv
    attributes: step, seconds, config (JSON), minivae and numpy versions

Everything is addressed by name, so the layout of the flat buffers may change between versions. The file's first 512
bytes, which HDF5 leaves to its users, hold the sha256 of all the others: no byte can change unnoticed.
"""

import contextlib
import hashlib
import io
import json
import os
from dataclasses import asdict

import h5py
import numpy as np

import minivae
from minivae.errors import UserError, run_command
from minivae.files import cannot_read, go_on_without, replacing
from minivae.training.runs import Run
from minivae.training.settings import Config
from minivae.training.statistics import estimated
from minivae.vae import VAE

SEAL = 512  # bytes of the HDF5 user block
PREVIOUS = "checkpoint-previous.h5"
# settings that change no finished step; the images have a sha256
FREE = {"data", "size", "skip_damaged", "steps", "eval_every", "checkpoint_every", "lr", "lr_end", "earlier_rates"}


def model_arrays(vae):
    """{name in the file: the live array} of all that sampling needs."""
    arrays = {f"parameters/{p.name}": p.value for p in vae.params.trained}
    return arrays | {f"moving/{p.name}": p.value for p in vae.params.state}


def _estimated_arrays(vae):
    """{name in the file: the live array} of statistics, where test mode has its own."""
    return {f"estimated/{p.name}": p.value for p in vae.params.state}


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
    content = _content(trainer, config, seconds)
    with replacing(path) as beside:
        beside.write_bytes(content)
        if beside.read_bytes() != content:
            raise UserError(f"{path} reads back otherwise than it was written; the disk may be faulty: choose another, "
                            "and go on from the last checkpoint, which is as it was")
        if path.exists():
            with replacing(path.with_name(PREVIOUS)) as previous:
                try:
                    os.link(path, previous)
                except OSError as e:
                    go_on_without(e, f"the file system of {path.parent} has no hard links: a kill in the instant "
                                     f"between two renames leaves {PREVIOUS} and no checkpoint.h5")
                    path.replace(previous)


def _content(trainer, config, seconds):
    """The bytes of the file. HDF5 writes into memory: its own error handling is no match for a full disk."""
    file = io.BytesIO()
    with h5py.File(file, "w", userblock_size=SEAL) as f:
        for name, array in training_arrays(trainer).items():
            f[name] = trainer.ops.to_host(array)
        with estimated(trainer):
            for name, array in _estimated_arrays(trainer.vae).items():
                f[name] = trainer.ops.to_host(array)
        f.attrs.update(step=trainer.step_count, seconds=seconds, config=json.dumps(asdict(config)),
                       minivae=minivae.__version__, numpy=np.__version__)
    content = file.getbuffer()
    content[:SEAL] = _seal(content)
    return file.getvalue()


def _seal(content):
    """The first SEAL bytes of a checkpoint: the hash of the others."""
    digest = hashlib.sha256(content[SEAL:]).hexdigest()
    return f"minivae checkpoint, sha256 of what follows: {digest}\n".encode().ljust(SEAL, b"\0")


def _read(path):
    """The file's bytes, or None if they are not those that were written. OSError if it cannot be read."""
    content = memoryview(path.read_bytes())
    return content if content[:SEAL] == _seal(content) else None


def open_model(folder, ops):
    """(run, vae, step, moving): the run in `folder`, its model, and what load_model returns. UserError without one."""
    run = Run.open(folder)
    config = run.config
    vae = VAE(config.shape, config.latent, ops, kl=config.kl, sigma=config.sigma, classes=len(config.label_names))
    return run, vae, *load_model(run / "checkpoint.h5", vae, config)


def start_from(run, vae, step, moving, trainer):
    """Give a new run's trainer the model of another run, as open_model returns it; config.origin tells of it.

    Adam starts anew. UserError if the two models differ.
    """
    config = trainer.config
    for name in ("shape", "latent", "sigma", "label_names"):
        theirs = getattr(run.config, name)
        if theirs != getattr(config, name):
            raise UserError(f"the model of {run.folder} has {name} {theirs}, and this run's would have "
                            f"{getattr(config, name)}; --size, --latent, --sigma and --labels must make them alike")
    trainer.vae.params.values[...] = vae.params.values
    trainer.vae.params.moving_statistics[...] = moving
    config.origin = f"{run.folder.absolute()}, step {step}"


def load_model(path, vae, config):
    """Fill the model from `path` with the statistics for test mode. UserError if it is not this run's checkpoint.

    Returns the step it was saved at, and the flat array of the moving statistics.
    """
    with _opened(path, config) as f:
        _fill(path, f, vae.ops, model_arrays(vae))
        moving = vae.params.moving_statistics.copy()
        if "estimated" in f:
            _fill(path, f, vae.ops, _estimated_arrays(vae))
        else:
            print(f"{path} was saved by an earlier version, without statistics re-estimated for test mode: batch norm "
                  "takes the moving ones")
        return int(f.attrs["step"]), moving


def load_training(path, trainer):
    """Fill the trainer from `path` and return the seconds trained so far. UserError if it is not its checkpoint.

    Rank 0 reads it, and the others have it from there.
    """
    seconds = 0.0
    if trainer.ranks.rank == 0:
        with _opened(path, trainer.config) as f:
            _fill(path, f, trainer.ops, training_arrays(trainer))
            trainer.adam.t[...] = int(f.attrs["step"])
            seconds = float(f.attrs["seconds"])
    trainer.begin_together()
    return seconds


@contextlib.contextmanager
def _opened(path, config):
    """The checkpoint as an h5py.File. UserError if it is missing, damaged, or made with settings other than `config`.

    Going on is exact only with the settings and the data that it was made with; those in FREE change none of its steps.
    """
    try:
        content = _read(path)
    except FileNotFoundError as e:
        raise UserError(f"{path} is missing; {_advice(path)}") from e
    except OSError as e:
        raise cannot_read(path, e) from e
    if content is None:
        raise UserError(f"{path} is damaged (its content does not match its sha256); {_advice(path)}")
    with h5py.File(io.BytesIO(content), "r") as f:
        made_with = Config.parse(f.attrs["config"])
        for field, value in vars(made_with).items():
            if field not in FREE and value != getattr(config, field):
                raise UserError(f"{path} was made with {field} {value}, and config.json says {getattr(config, field)}; "
                                f"put {value} back there, or start a new run")
        yield f


def _fill(path, f, ops, arrays):
    for name, array in arrays.items():
        if name not in f or f[name].shape != array.shape:
            raise UserError(f"{path} is a checkpoint of another model: {name} {array.shape} is not in it; "
                            "put the one of this run back, or start a new run")
    for name, array in arrays.items():
        array[...] = ops.xp.asarray(f[name][()])


def _advice(path):
    """What to do without `path`."""
    previous = path.with_name(PREVIOUS)
    if not path.exists() and not previous.exists():
        return f"the run has not saved one yet: {run_command('resume', path.parent)} trains it"
    with contextlib.suppress(OSError):
        if _read(previous):
            return f"the one before it is good: to go on from there, copy {previous} over it"
    return "there is no good older one beside it: start a new run"
