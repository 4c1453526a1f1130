"""A run directory: config.json, metrics.csv and where everything else of a run lies."""

import csv
import fcntl
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from minivae.errors import UserError

COLUMNS = ["step", "seconds", "train_loss", "train_rec", "train_kl", "test_loss", "test_rec", "test_kl"]


@dataclass
class Config:
    """All that decides a run's numbers. data is a source's name or an absolute path; losses are nats per image."""

    data: str
    steps: int
    batch_size: int
    latent: int
    lr: float
    seed: int
    kl: str
    log_every: int
    eval_every: int
    checkpoint_every: int
    shape: tuple
    train_sha256: str
    test_sha256: str
    sigma: str = "1"


class Run:
    def __init__(self, folder, config):
        self.folder, self.config = Path(folder), config

    @classmethod
    def create(cls, out, name, config):
        """Make `out`, or the next free runs/NAME-N. UserError if `out` holds a run or cannot be made."""
        try:
            if out is None:
                folder = _next_free(Path("runs"), name)
            else:
                folder = Path(out)
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"cannot make the run directory: {e}; choose another with --out") from e
        if (folder / "config.json").exists():
            raise UserError(f"{folder} already holds a run; choose another --out, or run.py resume {folder}")
        run = cls(folder, config)
        run.lock()
        try:
            run.save_config()
            write_text(run / "metrics.csv", ",".join(COLUMNS) + "\n")
        except OSError as e:
            raise UserError(f"cannot write into {folder}: {e}; choose another directory with --out") from e
        return run

    @classmethod
    def open(cls, folder):
        """The run in `folder`. UserError if there is none, or its config.json is not one."""
        path = Path(folder) / "config.json"
        try:
            values = json.loads(path.read_text())
            values["shape"] = tuple(values["shape"])
            return cls(folder, Config(**values))
        except FileNotFoundError as e:
            raise UserError(f"{folder} holds no run (no config.json); name a directory that run.py train made") from e
        except (OSError, ValueError, TypeError, KeyError) as e:
            names = ", ".join(f.name for f in fields(Config))
            raise UserError(f"{path} is not a run's configuration ({e}); it must be JSON with {names}") from e

    def lock(self):
        """Keep other processes from training in this directory until this one ends. UserError if one does already."""
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UserError(f"another process is training in {self.folder}; wait for it, or choose another run") from e

    def __truediv__(self, name):
        return self.folder / name

    def save_config(self):
        write_text(self / "config.json", json.dumps(asdict(self.config), indent=2) + "\n")

    def log(self, row):
        """Append {column: value} to metrics.csv, on disk when it returns; columns without a value stay empty."""
        with open(self / "metrics.csv", "a", newline="") as f:
            csv.writer(f).writerow(_format(row.get(c)) for c in COLUMNS)
            f.flush()
            os.fsync(f.fileno())

    def metrics(self):
        """metrics.csv as a list of {column: float}, absent values left out."""
        with open(self / "metrics.csv", newline="") as f:
            return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(f)]

    def forget_after(self, step):
        """Drop the rows of updates that the checkpoint at `step` does not know: they are about to be made again."""
        with open(self / "metrics.csv", newline="") as f:
            header, *rows = csv.reader(f)
        kept = [header] + [row for row in rows if len(row) == len(header) and int(row[0]) <= step]
        write_text(self / "metrics.csv", "".join(",".join(row) + "\n" for row in kept))


def write_text(path, text):
    """Replace a file in one step: a reader finds the old content or the new, never a part."""
    beside = path.with_name(path.name + ".part")
    with open(beside, "w", newline="") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(beside, path)


def _next_free(folder, name):
    folder.mkdir(exist_ok=True)
    n = 1
    while True:
        try:
            (folder / f"{name}-{n}").mkdir()
            return folder / f"{name}-{n}"
        except FileExistsError:
            n += 1


def _format(value):
    return "" if value is None else value if isinstance(value, int) else f"{value:.4f}"
