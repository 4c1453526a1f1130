"""A training step on this machine's processor: minivae's against PyTorch's, by part, by batch and by latent size.

    pip install -r requirements.txt torch && python benchmarks/cpu_step.py

writes benchmarks/results/cpu-PROCESSOR.json, and the tables in docs/results.md from what was measured on each
processor. A step is forward, backward and Adam of the reference's model in float32, batch 64. Every row is a process of
its own with as many threads as there are cores; they take turns, and only one works at a time. torch.compile needs a
C++ compiler.
"""

import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import machine
from cpu_worker import BATCH, BATCHES, LATENTS
from readme import RESULTS_PAGE, table, write_between

RESULTS = Path(__file__).parent / "results"
WORKER = Path(__file__).with_name("cpu_worker.py")
COLUMNS = {"minivae": "minivae", "eager": "PyTorch eager, NCHW", "channels_last": "PyTorch eager, channels last",
           "compile": "torch.compile"}
TUNING = "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"  # of BLAS by hand: a user has not set them
ROUNDS, STEPS = 12, 4  # turns of each column, steps of a turn


class Worker:
    """A process that does one task of cpu_worker; seconds: from its start to the first line that it prints."""

    def __init__(self, *task, cache):
        env = {name: value for name, value in os.environ.items() if name not in TUNING}
        env |= {"OMP_NUM_THREADS": str(machine.cores()), "TORCHINDUCTOR_CACHE_DIR": cache}
        start = time.perf_counter()
        self.process = subprocess.Popen([sys.executable, WORKER, *task], env=env, text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)
        self.first = self.read()
        self.seconds = time.perf_counter() - start

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"error: {' '.join(map(str, self.process.args[1:]))} failed; its message stands above")
        return json.loads(line)

    def ask(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.read()

    def close(self):
        """The last line that the process prints when its input ends."""
        self.process.stdin.close()
        last = self.process.stdout.read()
        self.process.wait()
        return json.loads(last) if last else None


def run(*task, cache):
    worker = Worker(*task, cache=cache)
    worker.close()
    return worker.first


def compare(cache):
    """For each column: milliseconds of a step, peak of memory in MB, seconds to the end of the first step."""
    workers = {name: Worker("steps", name, cache=cache) for name in COLUMNS}
    times = {name: [] for name in COLUMNS}
    for turn in range(1 + ROUNDS):
        for name, worker in workers.items():
            seconds = worker.ask(STEPS)
            if turn:  # the first one warms up
                times[name] += seconds
    return {name: {"step_ms": statistics.median(times[name]) * 1e3, "fastest_ms": min(times[name]) * 1e3,
                   "first_step_s": workers[name].seconds, "peak_mb": workers[name].close()} for name in COLUMNS}


def main():
    with tempfile.TemporaryDirectory() as cache:  # empty, so that torch.compile compiles
        results = {"date": datetime.date.today().isoformat(), "machine": run("describe", cache=cache),
                   "torch": version("torch"), "losses": run("agree", cache=cache)}
        for mine, theirs in results["losses"]:
            if abs(mine - theirs) > 1e-3 * theirs:
                raise SystemExit(f"error: the two models differ, their losses are {mine} and {theirs}")
        results |= {"gflop": run("floating_point_operations", cache=cache) / 1e9, "parts_ms": run("parts", cache=cache),
                    "growth_ms": run("growth", cache=cache), "columns": compare(cache)}
    about = results["machine"]
    name = "-".join(str(about[key]) for key in ("processor", "family", "model", "vectors"))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"cpu-{re.sub(r'[^a-z0-9]+', '-', name.lower())}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    every = [report(json.loads(path.read_text())) for path in sorted(RESULTS.glob("cpu-*.json"))]
    write_between("cpu", "\n\n".join(every), RESULTS_PAGE)
    print(report(results))


def report(results):
    """The page's text on one processor."""
    about, columns = results["machine"], results["columns"]
    best = min((c for name, c in columns.items() if name != "minivae"), key=lambda c: c["step_ms"])
    mine = columns["minivae"]
    rows = [[COLUMNS[name], f"{c['step_ms']:.0f}", f"{c['step_ms'] / mine['step_ms']:.2f}", f"{c['peak_mb']:.0f}",
             f"{c['first_step_s']:.1f}"] for name, c in columns.items()]
    floor = results["gflop"] / about["sgemm_gflops"] * 1e3
    split = [f"{name} {ms:.0f}" for name, ms in sorted(results["parts_ms"].items(), key=lambda part: -part[1])
             if name != "step"]
    grown = results["growth_ms"]
    by_batch = ", ".join(f"{grown[f'batch {n}'] / n:.2f} at {n}" for n in BATCHES)
    by_latent = ", ".join(f"{grown[f'latent {n}']:.0f} at {n}" for n in LATENTS)
    return "\n\n".join([
        f"### {about['processor']}, {about['vectors']}",
        table(["", "ms per step", "times minivae's", "peak memory, MB", "s to the first step's end"], rows),
        f"minivae is {best['step_ms'] / mine['step_ms']:.2f} times as fast as the fastest other, with "
        f"{100 * mine['peak_mb'] / best['peak_mb']:.0f} % of its memory. Family {about['family']} model "
        f"{about['model']}, {about['cores']} cores, {about['blas']} with its {about['blas_kernel']} kernel, NumPy "
        f"{about['numpy']}, PyTorch {results['torch']}, {results['date']}; batch {BATCH}.",
        f"Done as they are written, a step's {results['gflop']:.1f} GFLOP of products would take {floor:.0f} ms at the "
        f"{about['sgemm_gflops']:.0f} GFLOP/s that large products reach here. Most convolutions of minivae need fewer "
        "multiplications (numpy_toom_cook.py), in smaller products. The parts of a step, in ms, were measured in a run "
        f"of their own, in which a measured step took {results['parts_ms']['step']:.0f} ms: "
        f"{', '.join(split)}.",
        f"Milliseconds per image by batch size: {by_batch}. Milliseconds per step by latent size: {by_latent}."])


if __name__ == "__main__":
    main()
