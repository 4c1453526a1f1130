"""Work on all cores. NumPy lets go of the interpreter's lock inside ufuncs and products, so Python's threads suffice.

There are as many threads as BLAS was given (OMP_NUM_THREADS and its like, the process's affinity), and BLAS is kept to
one from then on: these threads split the products and all that stands around them alike, each its own part of the
batch, and an idle thread of BLAS would spin on a core that they need.
"""

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

CORES = max((lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"), default=os.cpu_count())
threadpool_limits(1, user_api="blas")

_pool = ThreadPoolExecutor(CORES)
_local = threading.local()


def parallel(work, tasks):
    """work(task) for every task of a sequence, on all cores, the caller's among them; returns when all are done."""
    queue = iter(tasks)

    def drain():
        for task in queue:
            work(task)

    helpers = [_pool.submit(drain) for _ in range(min(CORES, len(tasks)) - 1)]
    drain()
    for helper in helpers:
        if not helper.cancel():  # one that has not started has nothing left to do
            helper.result()


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
