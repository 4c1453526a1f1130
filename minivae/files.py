"""Files that are whole or absent: written beside their place, flushed to the disk, then renamed."""

import contextlib
import errno
import functools
import glob
import os
import sys
import tempfile

from minivae.errors import UserError

# what file systems answer to operations that they do not have
UNSUPPORTED = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, errno.ENOLCK}


@contextlib.contextmanager
def replacing(path):
    """A path beside `path` to write to; what is there at the end takes the place of `path` in one step.

    UserError if that cannot be done; what was at `path` is then untouched.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        _remove_leftovers(path)
        yield beside
        sync(beside)
        beside.replace(path)
        try:
            sync(path.parent)
        except OSError as e:
            go_on_without(e, f"the file system of {path.parent} cannot flush the names of files: after a power "
                             "failure the last file written may be missing there")
    except OSError as e:
        raise cannot_write(path, e) from e
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def _remove_leftovers(path):
    """Remove what killed processes had begun to write beside `path`."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.[0-9]*.part"):
        process = left.name.split(".")[-2]
        if process.isdecimal() and not _is_running(int(process)):
            left.unlink(missing_ok=True)


def _is_running(process):
    try:
        os.kill(process, 0)  # which sends nothing
    except PermissionError:  # it is another user's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


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


def go_on_without(error, consequence):
    """Say once what follows from a file system that lacks an operation; any other error is raised."""
    if error.errno not in UNSUPPORTED:
        raise error
    _say_once(f"note: {consequence}")


@functools.cache
def _say_once(text):
    print(text, file=sys.stderr)


def refuse_unwritable(folder):
    """UserError if no file can be made in `folder`: said before long work, not after it."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        raise cannot_write(folder, e) from e


def cannot_write(path, error):
    reason = os.strerror(error.errno) if error.errno else error  # h5py's own text is a page long
    return UserError(f"cannot write {path} ({reason}); make room, or make the folder and let it be written, then go "
                     "on: what was written before is untouched")


def cannot_read(path, error):
    return UserError(f"cannot read {path} ({error.strerror or error}); make it readable, then give the same command "
                     "again")
