"""What ran on the GPU, kernel by kernel, by torch.profiler: it sees every kernel of the process, CuPy's and those of
graphs too.
"""

import json
import re
import statistics
import tempfile
from collections import defaultdict, namedtuple
from pathlib import Path

# name: as kernels are named in launches; grid: three numbers; start: us, of an unknown clock; us: how long it ran
Kernel = namedtuple("Kernel", "name grid start us")

OPERATIONS = "CONV", "CONV_DX", "CONV_DX_ALL", "CONV_DW"  # the values of Op in kernels/window.cu
CALLS = 10


def trace(call):
    """[[Kernel] of each call], in order of their starts, of CALLS calls. RuntimeError if they cannot be told apart."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(CALLS):
            call()
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return each_call(json.loads(path.read_text()), CALLS)


def each_call(chrome_trace, calls):
    """[[Kernel] of each call] of a Chrome trace in which each call launched the same number of kernels."""
    try:
        found = sorted((Kernel(expression(event["name"]), tuple(event["args"]["grid"]), event["ts"], event["dur"])
                        for event in chrome_trace["traceEvents"] if event.get("cat") == "kernel"),
                       key=lambda kernel: kernel.start)
    except KeyError as e:
        raise RuntimeError(f"a kernel of the profiler's trace has no {e}") from e
    if not found or len(found) % calls:
        raise RuntimeError(f"the profiler saw {len(found)} kernels in {calls} calls")
    each = len(found) // calls
    return [found[i : i + each] for i in range(0, len(found), each)]


def expression(name):
    """A kernel's name as Source.names has it: product<CONV, 1> for `void product<(Op)0, true>(float const*)`."""
    parts = re.match(r"(?:void )?(\w+)<([^<>]*)>\(|(\w+)\(", name)
    if not parts:
        return name
    values = (parts[2] or "").replace("true", "1").replace("false", "0")
    values = re.sub(r"\(Op\)(\d)", lambda op: OPERATIONS[int(op[1])], values)
    return f"{parts[1]}<{values}>" if values else parts[1] or parts[3]


def busy(kernels):
    """us in which at least one of them ran."""
    total = 0.0
    end = -1.0
    for kernel in kernels:  # in order of their starts
        begin = max(kernel.start, end)
        end = max(kernel.start + kernel.us, end)
        total += end - begin
    return total


def medians(calls):
    """[Kernel] of a call, its start counted from the call's first, each number the median over the calls.

    The k-th kernel of one name and grid is taken for the same in each call, whatever runs beside it.
    """
    found = defaultdict(list)
    for kernels in calls:
        places = defaultdict(int)
        for kernel in kernels:
            key = kernel.name, kernel.grid
            found[*key, places[key]].append((kernel.start - kernels[0].start, kernel.us))
            places[key] += 1
    middle = [Kernel(name, grid, *(round(statistics.median(numbers), 2) for numbers in zip(*times, strict=True)))
              for (name, grid, _), times in found.items()]
    return sorted(middle, key=lambda kernel: kernel.start)
