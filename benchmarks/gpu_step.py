"""A training step on this machine's GPU: minivae's against PyTorch's, and each product against cuDNN and the roofline.

    pip install -r requirements-gpu.txt torch && python benchmarks/gpu_step.py

writes benchmarks/results/gpu-NAME.json and the README's tables. Every number is a median over rounds in which the
candidates take turns, timed with CUDA events in one process. PyTorch's batches and noise are made beforehand; minivae's
are part of its step. Both may use tf32; PyTorch's cuDNN searches for its fastest algorithm. How long the GPU is busy in
a step comes from a profile of some steps, taken after the timing. Each part is written when it is there, and what is
measured on one day with the same versions adds up: --parts run, then --parts products, ...
"""

import argparse
import datetime
import gc
import json
import math
import re
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from unittest import mock

import gpu_trace
import numpy as np
import roofline
from gpu_report import COLUMNS, report
from readme import write_between

from minivae.errors import UserError
from minivae.ops import cuda_module, cuda_ops
from minivae.training.settings import Config
from minivae.training.trainer import Trainer
from minivae.vae import VAE

RESULTS = Path(__file__).parent / "results"
BATCHES = 64, 256, 1024
ROUNDS, WARM_UP = 15, 20
REPEATS = 20  # calls of a product in the graph that is timed
UPDATES = 50_000  # the reference's run
PARTS = "run", "products", "steps"
MINE = "minivae", "in turn"  # the columns that are not PyTorch's


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--batch", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS))
    parser.add_argument("--updates", type=int, default=UPDATES, help="of the run that is timed as a whole")
    args = parser.parse_args(arguments)
    try:
        cuda_module.require_gpu()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    import cupy

    try:
        import torch
    except ImportError as e:
        print(f"error: PyTorch is measured beside minivae ({e}); get it with: pip install torch", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print(f"error: PyTorch {torch.__version__} finds no GPU; install one for this driver's CUDA", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    path = RESULTS / f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    results = earlier(path, {
        "card": name, "date": datetime.date.today().isoformat(), "cupy": cupy.__version__, "torch": torch.__version__,
        "cuda driver": cupy.cuda.runtime.driverGetVersion(), "cudnn": torch.backends.cudnn.version()})
    failed = False
    for part, measure in parts(results, args, roofline.card(name)):
        try:
            measure()
        except failures() as e:  # what else is measured is not lost
            failed = True
            print(f"error: {part}: {type(e).__name__}: {e}", file=sys.stderr, flush=True)
            continue
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        write_between("gpu", report(results))
        print(f"{part}: done", flush=True)
    print(report(results))
    return 1 if failed or any(step["failed"] for step in results["steps"]) else 0


def failures():
    """The errors of CUDA, CuPy and PyTorch."""
    compiler = sys.modules.get("cupy.cuda.compiler")  # whose CompileException is no RuntimeError
    return RuntimeError, MemoryError, *([compiler.CompileException] if compiler else [])


def earlier(path, head):
    """What stands in `path` if it has the same head: parts may be measured one by one, on one day; else the head."""
    found = json.loads(path.read_text()) if path.exists() else {}
    return found if head.items() <= found.items() else head | {"run": None, "products": [], "steps": []}


def parts(results, args, peaks):
    """(what, a function that measures it and puts it into results), each made when the one before has run."""
    for part in args.parts:
        if part == "run":
            yield "the run", lambda: results.update(run=whole_run(args.updates))
        elif part == "products":
            yield "products", lambda: results.update(products=products(args.batch[0], peaks))
        else:
            for batch in args.batch:
                timers = {}
                yield f"steps of {batch}", partial(put_steps, results, batch, args.columns, timers)
                if timers:  # apart: the times are written by now, should the profiler be missing or fail
                    yield f"profile of {batch}", partial(profile, results, batch, timers)


def put_steps(results, batch, columns, timers):
    others = [step for step in results["steps"] if step["batch"] != batch]
    results["steps"] = sorted([*others, steps(batch, columns, timers)], key=lambda step: step["batch"])


# The step


def trainer(batch, steps=100, ops=cuda_ops, sigma=1.0):
    """A Trainer of the reference's model on the GPU, on random images: what they show does not change the time."""
    images = np.random.default_rng(0).integers(0, 256, (8192, 32, 32, 3), np.uint8)
    config = Config("random", steps, batch, 10, 1e-3, 0, "sample", 100, 1000, 1000, (32, 32, 3), "random", "random",
                    sigma)
    return Trainer(config, images, ops)


def steps(batch, columns, timers):
    """{column: ms}, {column: peak_mb}, the clock of each round and the number of minivae's launches, of one batch size.

    timers gets {column: its timer}. A column that cannot be made, since PyTorch's compiler fails or memory does not
    suffice, is in `failed` with the reason; the others are measured all the same.
    """
    import torch

    torch.compiler.reset()  # or else another batch size would be compiled for any size
    found = {"batch": batch, "ms": {}, "peak_mb": {}, "busy_us": {}, "clocks_mhz": [], "failed": {}}
    for column in columns:
        try:
            timers[column] = (mine if column in MINE else torch_step)(batch, column, found)
        except failures() as e:
            found["failed"][column] = f"{type(e).__name__}: {e}"[:2000]
            print(f"error: {column} at batch {batch}: {found['failed'][column]}", file=sys.stderr, flush=True)
    for column, timings in take_turns(timers, lambda: found["clocks_mhz"].append(clock())).items():
        found["ms"][column] = statistics.median(timings)
    return found


def profile(results, batch, timers):
    """Add to what steps() found {column: busy_us}, and minivae's launches as the timeline."""
    found = next(step for step in results["steps"] if step["batch"] == batch)
    for column, timer in timers.items():
        calls = gpu_trace.trace(lambda timer=timer: timer(1))
        found["busy_us"][column] = statistics.median(map(gpu_trace.busy, calls))
        if column == "minivae":
            found["timeline"] = gpu_trace.medians(calls)


def clock():
    """MHz of the multiprocessors at this moment, or None where nvidia-smi does not tell."""
    import cupy

    command = ["nvidia-smi", f"--id={cupy.cuda.runtime.deviceGetPCIBusId(0)}", "--query-gpu=clocks.sm",
               "--format=csv,noheader,nounits"]
    try:
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None


def mine(batch, column, found):
    import cupy

    gc.collect()  # the last batch size's trainer
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.total_bytes()
    t = trainer(batch)
    t.step()
    launch = cuda_module.Source.launch
    with mock.patch.object(cuda_module.Source, "launch", autospec=True, side_effect=launch) as counted:
        t.device_step()
    t.adam.t[...] = t.step_count
    found["launches"] = counted.call_count
    early = cuda_module.EARLY_LAUNCHES if column == "minivae" else math.inf
    with mock.patch.object(cuda_module, "EARLY_LAUNCHES", early):
        t.step()  # which is recorded
    peak = pool.total_bytes() - before  # the pool keeps all that it ever had
    found["peak_mb"][column] = (peak - t.batches.device_images.nbytes) / 1e6
    return cupy_timer(t.step)


def torch_step(batch, column, found):
    import torch
    from torch_vae import TorchVAE, training_step

    torch.manual_seed(0)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    x, eps = torch.rand(batch, 3, 32, 32, device="cuda") * 2 - 1, torch.randn(batch, 10, device="cuda")
    step, x = training_step(TorchVAE().cuda(), x, column)
    for _ in range(WARM_UP):
        step(x, eps)
    torch.cuda.synchronize()
    timer = torch_timer(torch_replay(lambda: step(x, eps)) if column == "graph" else lambda: step(x, eps))
    found["peak_mb"][column] = (torch.cuda.max_memory_allocated() - before) / 1e6
    return timer


def cupy_timer(call):
    """A function of a number of calls: milliseconds for each, between two events on minivae's stream."""
    import cupy

    def timer(calls):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return cupy.cuda.get_elapsed_time(start, end) / calls

    return timer


def torch_timer(call):
    import torch

    def timer(calls):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / calls

    return timer


def take_turns(timers, after_round=lambda: None, calls=50):
    """{name: [milliseconds of each round]}: in every round each has its turn, after a warm-up."""
    found = {name: [] for name in timers}
    for timer in timers.values():
        timer(WARM_UP)
    for _ in range(ROUNDS):
        for name, timer in timers.items():
            found[name].append(timer(calls))
        after_round()
    return found


def whole_run(updates):
    """Seconds for a run: batches drawn on the host, a look at the losses every 100 updates, nothing written."""
    import cupy

    t = trainer(64, updates)
    for _ in range(2):
        t.step()
    cupy.cuda.get_current_stream().synchronize()
    start = time.perf_counter()
    while t.step_count < updates + 2:
        t.step()
        if t.step_count % 100 == 0:
            t.losses()
    cupy.cuda.get_current_stream().synchronize()
    return {"updates": updates, "batch": 64, "seconds": time.perf_counter() - start}


# The products


def products(batch, peaks):
    """[{name, pass, minivae, cudnn, floor}] in microseconds, each pass of each layer alone, its arrays in the cache."""
    from minivae.ops import numpy_ops

    rows = []
    for product in roofline.products(VAE((32, 32, 3), 10, numpy_ops), batch):
        mine, theirs = my_passes(product), torch_passes(product)
        for name in product.passes:
            timings = take_turns({"minivae": graph_of(mine[name]), "cudnn": torch_graph_of(theirs[name])}, calls=10)
            rows.append({"name": product.name, "pass": name, "batch": batch} |
                        {who: statistics.median(times) / REPEATS * 1e3 for who, times in timings.items()} |
                        {"floor": product.floor(peaks[0], peaks[2]) * 1e6 if peaks else None})
    return rows


def my_passes(product):
    ops = cuda_ops

    rng = np.random.default_rng(0)
    big, small, w = (ops.xp.asarray(rng.standard_normal(s).astype(np.float32))
                     for s in (product.big, product.small, product.w))
    big_out, small_out, dw = ops.xp.zeros_like(big), ops.xp.zeros_like(small), ops.xp.zeros_like(w)
    if product.kind == "dense":
        return {"forward": lambda: ops.dense(big, w, small_out), "dx": lambda: ops.dense_dx(small, w, big_out),
                "dw": lambda: ops.dense_dw(big, small, dw)}
    g, buffers = product.geometry, ops.Buffers()

    def to_small():
        return ops.conv(ops.im2col(big, g, buffers), w, g, small_out)

    def to_big():
        return ops.conv_dx(small, w, g, big_out)

    forward, dx = (to_small, to_big) if product.kind == "conv" else (to_big, to_small)
    return {"forward": forward, "dx": dx, "dw": lambda: ops.conv_dw(ops.im2col(big, g, buffers), small, g, dw)}


def torch_passes(product):
    """cuDNN's, channels_last, and cuBLAS' for dense layers. A convolution's padding is done beforehand, a transposed
    one's crop not at all.
    """
    import torch
    import torch.nn.functional as F

    if product.kind == "dense":
        x, w, dy = (torch.randn(s, device="cuda") for s in (product.big, product.w, product.small))
        return {"forward": lambda: x @ w, "dx": lambda: dy @ w.T, "dw": lambda: x.T @ dy}
    n, _, _, i = product.big
    small, k, s = product.small, product.geometry.kernel, product.geometry.stride

    def image(*shape):
        return torch.randn(shape, device="cuda").contiguous(memory_format=torch.channels_last)

    y = image(small[0], small[3], small[1], small[2])
    w = image(product.w[3], i, k, k)
    padding = 0 if product.kind == "conv" else 1
    big = image(n, i, (small[1] - 1) * s + k - 2 * padding, (small[2] - 1) * s + k - 2 * padding)
    transposed = product.kind == "tconv"
    x, dy = (y, big) if transposed else (big, y)

    def backward(*mask):
        return lambda: torch.ops.aten.convolution_backward(dy, x, w, None, [s, s], [padding] * 2, [1, 1], transposed,
                                                           [0, 0], 1, mask)

    forward = F.conv_transpose2d if transposed else F.conv2d
    return {"forward": lambda: forward(x, w, stride=s, padding=padding), "dx": backward(True, False, False),
            "dw": backward(False, True, False)}


def graph_of(call):
    """A timer of REPEATS calls in one CUDA graph, so that the host's time for a launch does not count."""
    return cupy_timer(cuda_ops.capture(lambda: [call() for _ in range(REPEATS)]))


def torch_graph_of(call):
    return torch_timer(torch_replay(lambda: [call() for _ in range(REPEATS)]))


def torch_replay(call):
    """A function that replays what call() does, recorded as one CUDA graph."""
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    return graph.replay


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
