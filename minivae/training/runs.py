"""A run directory: config.json, metrics.csv and where everything else of a run lies."""

import contextlib
import csv
import itertools
import json
import math
import os
import tempfile
import weakref
from dataclasses import asdict
from pathlib import Path

from minivae.errors import UserError, run_command
from minivae.files import cannot_read, cannot_write, go_on_without, write_text
from minivae.training.settings import Config
from minivae.unix import fcntl

COLUMNS = ["step", "seconds", "train_loss", "train_rec", "train_kl", "test_loss", "test_rec", "test_kl"]
HEADER = ",".join(COLUMNS)


class Run:
    def __init__(self, folder, config):
        self.folder, self.config = Path(folder), config

    @classmethod
    def create(cls, out, name, config):
        """Make `out`, or the next free runs/NAME-N. UserError if that is no new or empty folder."""
        try:
            if out is None:
                folder = _next_free(Path("runs"), name)
            else:
                folder = Path(out)
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise _cannot_make(out or "runs", e) from e
        run = cls(folder, config)
        run.lock()
        _refuse_content(folder)
        write_text(run / "metrics.csv", HEADER + "\n")
        run.save_config()  # last: a directory with a config.json can be resumed
        return run

    @classmethod
    def open(cls, folder):
        """The run in `folder`. UserError if there is none, or its config.json is not one."""
        path = Path(folder) / "config.json"
        if not path.parent.exists():
            raise UserError(f"there is no {folder}; name a directory that run.py train made")
        if not path.exists():
            raise UserError(f"{folder} holds no run (no config.json); name a directory that run.py train made")
        return cls(folder, Config.read(path))

    def lock(self):
        """Keep others from training in this directory as long as this Run lives. UserError if one does already."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UserError(f"another process is training in {self.folder}; wait for it, or choose another run") from e
        except OSError as e:
            go_on_without(e, f"the file system of {self.folder} has no locks: nothing stops a second process from "
                             "training there at the same time")

    def __truediv__(self, name):
        return self.folder / name

    def save_config(self):
        write_text(self / "config.json", json.dumps(asdict(self.config), indent=2) + "\n")

    def log(self, row):
        """Append {column: value} to metrics.csv, on disk when it returns; columns without a value stay empty."""
        cells = {column: value if isinstance(value, int) else f"{value:.4f}" for column, value in row.items()}
        try:
            with open(self / "metrics.csv", "a", newline="") as f:
                csv.DictWriter(f, COLUMNS, lineterminator="\n").writerow(cells)
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise cannot_write(self / "metrics.csv", e) from e

    def metrics(self):
        """metrics.csv as a list of {column: float}, absent values left out, and a last line without an end too.

        UserError if it is damaged in any other way.
        """
        path = self / "metrics.csv"
        try:
            header, *lines = path.read_text().split("\n")[:-1] or [""]
            if header != HEADER:
                raise ValueError(f"line 1 is not {HEADER}")
            return [_row(number, line) for number, line in enumerate(lines, 2)]
        except FileNotFoundError as e:
            raise UserError(f"{path} is missing; put it back, or write this line into a new one: {HEADER}") from e
        except OSError as e:
            raise cannot_read(path, e) from e
        except ValueError as e:
            raise UserError(f"{path} is damaged ({e}); correct it, or keep its first line alone, then go on") from e

    def forget_after(self, step):
        """Drop the rows of steps after the checkpoint at `step`: these steps are about to be taken again."""
        kept = sum(row["step"] <= step for row in self.metrics())
        lines = (self / "metrics.csv").read_text().split("\n")[: 1 + kept]
        write_text(self / "metrics.csv", "".join(line + "\n" for line in lines))


def refuse_out(out):
    """UserError if Run.create would refuse `out`: told before images are read, not after it."""
    folder = Path("runs" if out is None else out)
    try:
        if out is not None and folder.is_dir():
            _refuse_content(folder)
        place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as e:
        raise _cannot_make(folder, e) from e


def _cannot_make(folder, error):
    return UserError(f"cannot make the run directory {folder} ({error.strerror}); choose another with --out")


def _refuse_content(folder):
    if (folder / "config.json").exists():
        raise UserError(f"{folder} already holds a run; choose another --out, or go on with it: "
                        f"{run_command('resume', folder)}")
    if found := next(folder.iterdir(), None):
        raise UserError(f"{folder} is not empty ({found.name} is in it); choose a new or an empty folder for --out")


def _next_free(folder, name):
    folder.mkdir(exist_ok=True)
    for n in itertools.count(1):
        with contextlib.suppress(FileExistsError):
            (folder / f"{name}-{n}").mkdir()
            return folder / f"{name}-{n}"


def _row(number, line):
    """{column: float} of a line of metrics.csv. ValueError if it is not one."""
    try:
        row = {column: float(cell) for column, cell in zip(COLUMNS, line.split(","), strict=True) if cell}
    except ValueError:
        row = {}
    if not ("step" in row and all(map(math.isfinite, row.values()))):
        raise ValueError(f"line {number} is {line[:80]!r}")
    return row
