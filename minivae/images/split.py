"""What every reader gives and how every reader fails: a Split, or one line that names the file."""

import contextlib
import math
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minivae.errors import UserError
from minivae.images.stream import Streamed

LARGEST_RATIO = 1100  # of bytes to bytes stored: deflate cannot pack tighter
HARMLESS = 2**26  # bytes that any file may claim


@dataclass
class Split:
    """images (N, H, W, C) uint8, labels (N,) int64 or None, sha256 of the images' shape and bytes.

    label_names[i] is what label i was called, None if labels are numbers. names are the images'
    files, None where they have none. notes are lines that the user should read. Of images, only
    shape, len and images[slice or array of rows] are used, so they may be Streamed. A reader's own
    Splits hold what `path` holds, of any type and shape, and sha256 if it is known.
    """

    images: np.ndarray | Streamed
    labels: np.ndarray | None
    sha256: str | None = None
    path: Path | None = None
    names: list | None = None
    notes: list = field(default_factory=list)
    label_names: list | None = None

    def take(self, rows):
        """A Split of these rows alone."""
        labels = None if self.labels is None else self.labels[rows]
        names = None if self.names is None else [self.names[row] for row in rows]
        return Split(self.images[rows], labels, path=self.path, names=names, label_names=self.label_names)


@contextlib.contextmanager
def reading(path):
    """Whatever goes wrong with `path` becomes a UserError that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the one line is enough
            yield
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    except MemoryError as e:
        raise UserError(f"{path} does not fit in memory; write its images into an .h5, as uint8 "
                        "(N, H, W, C) and as data/README.md says, to have them streamed") from e
    except Exception as e:  # for damaged bytes the libraries raise more than a dozen kinds
        if isinstance(e, OSError) and e.errno:
            raise UserError(f"{e.filename or path} cannot be read ({reason(e)}); give a path that "
                            "can be") from e
        raise UserError(f"{path} cannot be read ({reason(e)}); put a good copy in its place, or "
                        "save its images as data/README.md says") from e


def reason(error):
    """What a library's error says, on one line."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return " ".join(str(error).split())[:200] or type(error).__name__


def check_claim(sizes, stored):
    """ValueError if the product of `sizes`, in bytes, cannot come from `stored` bytes of a file."""
    claim = math.prod(int(n) for n in sizes)
    if claim > max(LARGEST_RATIO * stored, HARMLESS):
        raise ValueError(f"its header claims {claim:,} bytes, but it stores {stored:,}")
