"""A run directory: config.json, metrics.csv and where everything else of a run lies."""

import contextlib
import fcntl
import json
import math
import os
import weakref
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from minivae.errors import UserError
from minivae.files import cannot_write, write_text

COLUMNS = ["step", "seconds", "train_loss", "train_rec", "train_kl", "test_loss", "test_rec", "test_kl"]
HEADER = ",".join(COLUMNS)
LONGEST_LOG = 1_000_000  # updates between two lines: their losses are kept until the line is written


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

    @classmethod
    def read(cls, path):
        """The Config that a config.json holds. UserError if it is not one, or a value is none that a run can have."""
        try:
            config = cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError, RecursionError) as e:
            names = ", ".join(f.name for f in fields(cls))
            raise UserError(f"{path} is not a run's configuration ({e}); it must be JSON with {names}") from e
        for name, value in vars(config).items():
            if not _allowed(name, value):
                raise UserError(f"{path} says that {name} is {str(value)[:80]!r}, which no run can have; put the "
                                "right value back, or train anew")
        config.shape = tuple(config.shape)
        return config


def _allowed(name, value):
    """Whether a run can have this value."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    match name:
        case "shape":
            return (isinstance(value, list) and len(value) == 3 and all(type(n) is int and n > 0 for n in value)
                    and value[0] % 8 == value[1] % 8 == 0 and value[2] in (1, 3))
        case "seed":
            return whole and 0 <= value < 2**32
        case "batch_size":
            return whole and 2 <= value < 2**31
        case "log_every":
            return whole and 1 <= value <= LONGEST_LOG
        case "steps" | "latent" | "eval_every" | "checkpoint_every":
            return whole and 1 <= value < 2**63
        case "lr":
            return (whole or isinstance(value, float)) and 0 < value < 1e308
        case "kl":
            return value in ("sample", "analytic")
        case "sigma":
            return value in ("optimal", "learned", "pixel") or isinstance(value, str) and _is_positive(value)
        case _:
            return isinstance(value, str)


def _is_positive(text):
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


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
        run = cls(folder, config)
        run.lock()
        if any((folder / name).exists() for name in ("config.json", "checkpoint.h5")):
            raise UserError(f"{folder} already holds a run; choose another --out, or run.py resume {folder}")
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
        for left in self.folder.glob("*.part"):  # by a process that was killed while it wrote
            with contextlib.suppress(OSError):
                left.unlink()

    def __truediv__(self, name):
        return self.folder / name

    def save_config(self):
        write_text(self / "config.json", json.dumps(asdict(self.config), indent=2) + "\n")

    def log(self, row):
        """Append {column: value} to metrics.csv, on disk when it returns; columns without a value stay empty."""
        line = ",".join(_format(row.get(c)) for c in COLUMNS) + "\n"
        try:
            with open(self / "metrics.csv", "a", newline="") as f:
                f.write(line)
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise cannot_write(self / "metrics.csv", e) from e

    def metrics(self):
        """metrics.csv as a list of {column: float}, absent values left out, and a last line without an end too.

        UserError if it is damaged in any other way.
        """
        path, rows = self / "metrics.csv", []
        try:
            header, *lines = path.read_text().split("\n")[:-1] or [""]
            if header != HEADER:
                raise ValueError(f"line 1 is not {HEADER}")
            for number, line in enumerate(lines, 2):
                row = _row(line)
                if row is None or row["step"] <= (rows[-1]["step"] if rows else 0):
                    raise ValueError(f"line {number} is {line[:80]!r}")
                rows.append(row)
        except FileNotFoundError as e:
            raise UserError(f"{path} is missing; put it back, or write this line into a new one: {HEADER}") from e
        except (OSError, ValueError) as e:
            raise UserError(f"{path} is damaged ({e}); mend it, or keep its first line alone, then go on") from e
        return rows

    def forget_after(self, step):
        """Drop the rows of updates that the checkpoint at `step` does not know: they are about to be made again."""
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


def _row(line):
    """{column: float} of a line of metrics.csv, None if it is not one."""
    cells = line.split(",")
    try:
        row = {column: float(cell) for column, cell in zip(COLUMNS, cells, strict=True) if cell}
    except ValueError:
        return None
    return row if "step" in row and all(map(math.isfinite, row.values())) else None


def _format(value):
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.4f}"
