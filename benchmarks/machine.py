"""What a benchmark ran on: processor, memory, BLAS kernel, versions, and the rate of its matrix products."""

import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info

SIDE = 2048  # of the square matrices whose product is timed


def cores():
    return len(os.sched_getaffinity(0))


def describe():
    """A dict of names and numbers; to be called before minivae.ops is imported, which keeps BLAS to one thread."""
    blas = next(lib for lib in threadpool_info() if lib["user_api"] == "blas")
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    info = {key.strip(): value.strip() for key, _, value in lines}
    vectors = next((name for name in ("avx512f", "avx2", "avx") if name in info.get("flags", "").split()), "none known")
    return {
        "processor": info.get("model name", platform.processor()), "family": info.get("cpu family"),
        "model": info.get("model"), "cores": cores(), "vectors": vectors,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.system(), "python": platform.python_version(), "numpy": np.__version__,
        "blas": f"{blas['internal_api']} {blas['version']}", "blas_kernel": blas["architecture"],
        "blas_threads": blas["num_threads"],
    }


def sgemm_rate(seconds=3):
    """GFLOP/s of float32 matrix products on all of BLAS's threads, the median of the products of some seconds."""
    a, b, out = (np.ones((SIDE, SIDE), np.float32) for _ in range(3))
    rates, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        np.matmul(a, b, out=out)
        rates.append(2 * SIDE**3 / (time.perf_counter() - start) / 1e9)
    return statistics.median(rates)
