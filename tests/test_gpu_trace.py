"""What a profile of a step says, read from traces written here: no GPU and no PyTorch needed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gpu_model
import gpu_trace
import numpy as np
import nvrtc
import pytest

from minivae.ops import cuda_conv, cuda_norm

ROOT = Path(__file__).parent.parent


def event(name, ts, dur, grid=(8, 1, 1), cat="kernel"):
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "args": {"grid": list(grid)}}


def test_a_trace_of_two_calls():
    """Two kernels of one name and grid beside each other, in either order, and one that begins before they end."""
    head = "void product<(Op)3, true, 128, 64, 64, 32, false, 2>(float const*, int)"
    events = [event("record(float const*)", 1008.5, 4), event(head, 1000, 5), event(head, 1003, 6),
              event("Memcpy", 990, 500, cat="gpu_memcpy"),
              event(head, 2000, 7), event("record(float const*)", 2010, 2), event(head, 2001, 4)]
    calls = gpu_trace.each_call({"traceEvents": events}, 2)
    assert [kernel.start for kernel in calls[0]] == [1000, 1003, 1008.5]
    assert [gpu_trace.busy(kernels) for kernels in calls] == [12.5, 9]
    name = "product<CONV_DW, 1, 128, 64, 64, 32, 0, 2>"
    assert gpu_trace.medians(calls) == [(name, (8, 1, 1), 0, 6), (name, (8, 1, 1), 2, 5),
                                        ("record", (8, 1, 1), 9.25, 3)]


@pytest.mark.parametrize("events", [[], [event("add", 1, 1)], [{"cat": "kernel", "name": "add"}] * 2])
def test_a_trace_that_makes_no_sense(events):
    """No kernel, one in two calls, and one without times."""
    with pytest.raises(RuntimeError, match="profiler"):
        gpu_trace.each_call({"traceEvents": events}, 2)


def test_names_in_a_trace_are_those_of_the_launches():
    """As the symbols of compiled kernels read when they are demangled."""
    if not nvrtc.library() or not shutil.which("c++filt"):
        pytest.skip("it takes the nvidia-cuda-nvrtc wheel and c++filt")
    for source in cuda_conv.TENSOR, cuda_norm.NORM:
        kernels = nvrtc.compile_kernels(source.code(np.float32), source.names, "sm_90").kernels
        demangled = subprocess.run(["c++filt"], input="\n".join(kernel.symbol for kernel in kernels), text=True,
                                   capture_output=True, check=True).stdout.splitlines()
        assert [gpu_trace.expression(name) for name in demangled] == [kernel.name for kernel in kernels]


def test_the_model_stands_beside_what_was_measured(tmp_path, capsys):
    launches = gpu_model.step(64)
    times = gpu_model.schedule(launches)
    kernels = [(launch.name, (*launch.grid, 1, 1)[:3], 100.0 + i, 2.5) for i, launch in enumerate(launches)]
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps({"steps": [{"batch": 64, "timeline": [*kernels[1:], ("other", (1, 1, 1), 7, 1)]}]}))
    gpu_model.beside(launches, times, gpu_model.timeline(path, 64))
    lines = capsys.readouterr().out.splitlines()
    assert sum("for   2.5" in line for line in lines) == len(launches) - 1
    assert [line for line in lines if "not measured" in line] == [line for line in lines if "  normal" in line]
    assert lines[-1] == "not on paper: 7.0 for 1.0 us  other (1, 1, 1)"
    assert gpu_model.timeline(path, 256) == []


def test_it_runs_without_pooch():
    """Images are made here; a machine that is lent may lack what downloads them."""
    code = "import sys; sys.modules['pooch'] = None; import gpu_step, gpu_model; gpu_model.step(64)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True,
                   env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"})
