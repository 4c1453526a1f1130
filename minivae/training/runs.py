"""A run directory: config.json, metrics.csv and where everything else of a run lies."""

import csv
import fcntl
import json
import math
import os
import weakref
from dataclasses import asdict
from pathlib import Path

from minivae.errors import UserError, run_command
from minivae.files import cannot_read, cannot_write, go_on_without, write_text
from minivae.training.settings import Config

COLUMNS = ["step", "seconds", "train_loss", "train_rec", "train_kl", "test_loss", "test_rec", "test_kl"]
HEADER = ",".join(COLUMNS)


class Run:
    def __init__(self, folder, config):
        self.folder, self.config = Path(folder), config

    @classmethod
    def create(cls, out, name, config):
        """Make `out`, or the next free runs/NAME-N. UserError if `out` holds anything or cannot be made."""
        if out == "":
            raise UserError("--out names no folder; give one, or leave --out away for the next free one in runs")
        try:
            if out is None:
                folder = _next_free(Path("runs"), name)
            else:
                folder = Path(out)
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"cannot make the run directory: {e}; choose another with --out") from e
        run = cls(folder, config)
        run.lock()
        if any((folder / name).exists() for name in ("config.json", "checkpoint.h5")):
            raise UserError(f"{folder} already holds a run; choose another --out, or go on with it: "
                            f"{run_command('resume', folder)}")
        if found := sorted(path.name for path in folder.iterdir()):
            raise UserError(f"{folder} is not empty ({found[0]} is in it); choose a new or an empty folder for --out")
        write_text(run / "metrics.csv", HEADER + "\n")
        run.save_config()  # last: a directory with a config.json can be resumed
        return run

    @classmethod
    def open(cls, folder):
        """The run in `folder`. UserError if there is none, or its config.json is not one."""
        path = Path(folder) / "config.json"
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
        rows = []
        try:
            lines = path.read_text().split("\n")[:-1]
            for number, cells in enumerate(csv.reader(lines or [""]), 1):
                if number == 1 and cells != COLUMNS:
                    raise ValueError(f"line 1 is not {HEADER}")
                if number > 1:
                    rows.append(_row(number, cells, after=rows[-1]["step"] if rows else 0))
        except FileNotFoundError as e:
            raise UserError(f"{path} is missing; put it back, or write this line into a new one: {HEADER}") from e
        except OSError as e:
            raise cannot_read(path, e) from e
        except (ValueError, csv.Error) as e:
            raise UserError(f"{path} is damaged ({e}); correct it, or keep its first line alone, then go on") from e
        return rows

    def forget_after(self, step):
        """Drop the rows of steps after the checkpoint at `step`: these steps are about to be taken again."""
        kept = sum(row["step"] <= step for row in self.metrics())
        lines = (self / "metrics.csv").read_text().split("\n")[: 1 + kept]
        write_text(self / "metrics.csv", "".join(line + "\n" for line in lines))


def _next_free(folder, name):
    folder.mkdir(exist_ok=True)
    n = 1
    while True:
        try:
            (folder / f"{name}-{n}").mkdir()
            return folder / f"{name}-{n}"
        except FileExistsError:
            n += 1


def _row(number, cells, after):
    """{column: float} of a line of metrics.csv. ValueError if it is not one, or of a step that is not after `after`."""
    try:
        row = {column: float(cell) for column, cell in zip(COLUMNS, cells, strict=True) if cell}
        valid = row.get("step", 0) > after and all(map(math.isfinite, row.values()))
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(f"line {number} is {','.join(cells)[:80]!r}")
    return row
