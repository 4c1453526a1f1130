"""Work on all cores. NumPy lets go of the interpreter's lock inside ufuncs and products, so Python's threads suffice.

The first call of parallel starts as many threads as BLAS was given (OMP_NUM_THREADS and its like, the process's
affinity), and from then on the BLAS libraries that are loaded work on one thread each: ours share out the products and
everything around them alike, each a part of the batch, and an idle thread of BLAS would spin on a core that they need.
Importing this module does neither.
"""

import math
import os
import threading
from functools import cache
from itertools import pairwise
from queue import SimpleQueue

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

_calls = SimpleQueue()  # of (function, queue that hears of its end): wakes a thread sooner than ThreadPoolExecutor
_local = threading.local()


@cache
def cores():
    """How many threads share the work, the caller's among them. The first call starts the others and limits BLAS."""
    count = max((lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"), default=os.cpu_count())
    threadpool_limits(1, user_api="blas")
    for _ in range(count - 1):
        threading.Thread(target=_serve, daemon=True).start()
    return count


def _serve():
    while True:
        call, done = _calls.get()
        try:
            call()
        except BaseException as e:  # parallel raises it in the caller's thread
            done.put(e)
        else:
            done.put(None)


def parallel(work, tasks):
    """work(task) for every task of a sequence, on all cores; returns when all are done.

    An error of any of them is raised. work must not call parallel: it might wait for the thread that it runs on.
    """
    left = iter(tasks)

    def drain():
        for task in left:
            work(task)

    done = SimpleQueue()
    helpers = min(cores(), len(tasks)) - 1
    for _ in range(helpers):
        _calls.put((drain, done))
    try:
        drain()
    finally:  # also after an error nobody may write to the arrays any more
        errors = [done.get() for _ in range(helpers)]
    for error in errors:
        if error:
            raise error


def split(count, most):
    """range(count) as slices of nearly equal length, each at most `most` long.

    How work is cut never depends on the number of cores: the same sums in the same order give the same bits.
    """
    parts = math.ceil(count / max(most, 1))
    bounds = [count * i // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(bounds)]


def scratch(name, shape, dtype):
    """An array of this thread's own for one task or operation: all shapes of a name share one piece of memory."""
    size = math.prod(shape)
    key = name, np.dtype(dtype)
    arrays = _local.__dict__
    if key not in arrays or arrays[key].size < size:
        arrays[key] = np.empty(size, dtype)
    return arrays[key][:size].reshape(shape)
