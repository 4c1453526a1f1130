"""minivae's command line: parse, call, and one line for whatever goes wrong."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 (before anything that an older one cannot import)
    print("error: minivae needs Python 3.11 or newer; this is", sys.version.split()[0], file=sys.stderr)
    sys.exit(2)

try:
    import contextlib
    import os
    import signal
    import warnings

    from minivae.errors import UserError
    from minivae.options import parse
    from minivae.training import ranks
except KeyboardInterrupt:  # Ctrl-C as early as that: main() answers a later one
    print("error: interrupted", file=sys.stderr)
    sys.exit(130)


def main(argv):
    warnings.simplefilter("ignore", RuntimeWarning)  # of NumPy's overflows: training looks for what is not finite
    try:
        world = ranks.start()
        args = parse(argv)
        args.ranks = world
        from minivae import commands  # with NumPy, whose threads are as many as ranks.start says

        status = getattr(commands, args.command)(args) or 0
        sys.stdout.flush()
        return status
    except UserError as e:
        return failed(e)
    except MemoryError as e:  # CuPy's too
        return failed(f"out of memory ({str(e) or 'none is left'}); smaller batches or smaller images need less")
    except RuntimeError as e:
        if "start new thread" not in str(e):
            raise
        return failed("out of memory: no other thread can be started; give the process more, or fewer OMP_NUM_THREADS")
    except ModuleNotFoundError as e:
        return failed(f"{e.name} is not installed; run: pip install -r requirements.txt")
    except ImportError as e:
        return failed(f"a library cannot be loaded ({e.__cause__ or e}); memory may be short, or its installation "
                      "damaged: pip install --force-reinstall -r requirements.txt")
    except OSError as e:
        if sys.stdout is sys.__stdout__:  # what it still holds would be flushed at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(e, BrokenPipeError):  # whoever read the output has gone
            ranks.end_all(128 + signal.SIGPIPE)
            return 128 + signal.SIGPIPE
        if e.errno and e.filename is None:  # an error of a file has its name
            return failed(f"standard output cannot be written ({e.strerror}); let it go elsewhere. A run that had "
                          "begun is saved: resume goes on with it")
        return failed(f"{e}; fix that, then give the same command again")
    except KeyboardInterrupt:
        return failed("interrupted", 130)


def failed(what, status=2):
    ranks.let_rank_0_speak_first()
    with contextlib.suppress(OSError):  # nobody may be reading that any more
        print(f"error: {' '.join(str(what).split())}", file=sys.stderr)
    ranks.end_all(status)
    return status


def prepare_process():
    """Lines appear at once in a pipe or a file too; names that an encoding lacks are escaped; no window is opened.

    Standard streams that were closed (`>&-`) go to the null device, or the next files opened would take their place.
    A notebook, whose %run puts its own streams in place of them, is left as it is.
    """
    if sys.stdout is not sys.__stdout__:
        return
    while os.open(os.devnull, os.O_RDWR) <= 2:  # each call takes the lowest free descriptor
        pass
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    os.environ["MPLBACKEND"] = "agg"
    if ranks.rank_of_launch():  # rank 0 alone prints
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    prepare_process()
    sys.exit(main(sys.argv[1:]))
