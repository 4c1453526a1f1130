"""Work on all cores. NumPy lets go of the interpreter's lock inside ufuncs and products, so Python's threads suffice.

There are as many threads as BLAS was given (OMP_NUM_THREADS and its like, the process's affinity), and BLAS is kept to
one from then on: these threads split the products and all that stands around them alike, each its own part of the
batch, and an idle thread of BLAS would spin on a core that they need.
"""

import math
import os
import threading
from itertools import pairwise
from queue import SimpleQueue

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

CORES = max((lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"), default=os.cpu_count())
threadpool_limits(1, user_api="blas")

_calls = SimpleQueue()  # (function, where to say that it is done): wakes a thread sooner than ThreadPoolExecutor
_local = threading.local()


def _serve():
    while True:
        call, done = _calls.get()
        try:
            call()
        except BaseException as e:  # the caller's to raise
            done.put(e)
        else:
            done.put(None)


for _ in range(CORES - 1):
    threading.Thread(target=_serve, daemon=True).start()


def parallel(work, tasks):
    """work(task) for every task of a sequence, on all cores, the caller's among them; returns when all are done.

    An error of any of them is raised. work must not call parallel: it might wait for the thread that it runs on.
    """
    left = iter(tasks)

    def drain():
        for task in left:
            work(task)

    done, helpers = SimpleQueue(), min(CORES, len(tasks)) - 1
    for _ in range(helpers):
        _calls.put((drain, done))
    try:
        drain()
    finally:  # after an error too nobody writes to the arrays any more
        errors = [done.get() for _ in range(helpers)]
    for error in errors:
        if error:
            raise error


def split(count, most):
    """range(count) as slices of nearly equal length, each `most` long at most.

    How work is cut never depends on CORES: the same sums in the same order, so the same bits, on any number of them.
    """
    parts = math.ceil(count / max(most, 1))
    bounds = [count * i // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(bounds)]


def scratch(name, shape, dtype):
    """An array of this thread's own, dead when its task or operation ends: one piece of memory for a name's shapes."""
    size, key = math.prod(shape), (name, np.dtype(dtype))
    arrays = _local.__dict__
    if key not in arrays or arrays[key].size < size:
        arrays[key] = np.empty(size, dtype)
    return arrays[key][:size].reshape(shape)
