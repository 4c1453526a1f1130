"""Files that are whole or absent: written beside their place, flushed to the disk, then renamed."""

import contextlib
import os

from minivae.errors import UserError


@contextlib.contextmanager
def replacing(path):
    """A path beside `path` to write to; what is there at the end takes the place of `path` in one step.

    UserError if that cannot be done; what was at `path` is then untouched.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield beside
        sync(beside)
        beside.replace(path)
        sync(path.parent)
    except OSError as e:
        raise cannot_write(path, e) from e
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def write_text(path, text):
    """Replace a file in one step: a reader finds the old content or the new, never a part. UserError as above."""
    with replacing(path) as beside:
        beside.write_text(text)


def sync(path):
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path, error):
    reason = os.strerror(error.errno) if error.errno else error  # h5py's own text is a page long
    return UserError(f"cannot write {path} ({reason}); make room or make the folder writable, then go on: what was "
                     "written before is untouched")
