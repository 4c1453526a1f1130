"""A training step on one and on two cores of this machine: by threads, by ranks, and by PyTorch's ranks.

    pip install -r requirements-mpi.txt torch && python benchmarks/ranks.py

writes benchmarks/results/ranks.json and the table in docs/scaling.md. A step is forward, backward, what the ranks
exchange, and Adam, of the reference's model in float32. PyTorch's ranks are those of DistributedDataParallel with
gloo, whose batch norm takes the moments of each rank's own images. Every figure is the median of several turns, each in
processes of its own, and only one column works at a time.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import machine
import numpy as np
from cpu_step import TUNING
from cpu_worker import LATENT, SHAPE, inputs
from readme import README, table, write_between

RESULTS = Path(__file__).parent / "results" / "ranks.json"
PAGE = README.parent / "docs" / "scaling.md"
BATCHES = 64, 256, 1024
TURNS, WARM_UP, IMAGES = 3, 2, 768  # of a turn: steps that do not count, images of the others
PORT = 29517  # where PyTorch's ranks meet
COLUMNS = {  # heading, processes, cores of each
    "one core": ("1 core", 1, 1), "threads": ("2 threads", 1, 2), "ranks": ("2 ranks", 2, 1),
    "torch": ("2 ranks of PyTorch", 2, 1)}


def minivae_step(batch, world):
    """A function that makes one update with this rank's shard of the batch."""
    from minivae.adam import Adam
    from minivae.ops import numpy_ops
    from minivae.vae import VAE

    x, eps = (array[world.shard(batch)] for array in inputs(batch, LATENT))
    vae = VAE(SHAPE, LATENT, world.operations(numpy_ops, batch))
    adam = Adam(vae.params)

    def step():
        vae.forward(x, eps)
        vae.backward()
        world.all_reduce(vae.params.grads)
        adam.update()
        adam.t += 1

    return step


def torch_step(batch, rank, size):
    """The same of PyTorch."""
    import torch
    from torch.nn.parallel import DistributedDataParallel
    from torch_vae import TorchVAE, training_step

    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{PORT}", rank=rank, world_size=size)
    shard = slice(batch * rank // size, batch * (rank + 1) // size)
    x, eps = (torch.from_numpy(array[shard]) for array in inputs(batch, LATENT))
    model = TorchVAE(LATENT).to(memory_format=torch.channels_last)
    model = DistributedDataParallel(model, forward_sync_buffers=False)
    step, x = training_step(model, x.permute(0, 3, 1, 2), "channels_last")
    return lambda: step(x, eps)


def work(column, batch, rank):
    """Print, on rank 0, the median milliseconds of a step, and those of its exchange, with the wait for others."""
    _, size, cores = COLUMNS[column]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[rank * cores : (rank + 1) * cores])
    exchanged = []
    if column == "torch":
        step = torch_step(batch, rank, size)
    else:
        from minivae.training import ranks

        world = ranks.start()
        all_reduce = world.all_reduce

        def timed(array):
            start = time.perf_counter()
            all_reduce(array)
            exchanged[-1] += time.perf_counter() - start

        world.all_reduce = timed
        step = minivae_step(batch, world)
    seconds = []
    for _ in range(WARM_UP + max(2, IMAGES // batch)):
        exchanged.append(0)
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    if rank == 0:
        print(json.dumps([1e3 * statistics.median(times[WARM_UP:]) for times in (seconds, exchanged)]))


def measure(column, batch):
    """What rank 0 of the column's processes prints."""
    _, size, cores = COLUMNS[column]
    environment = {name: value for name, value in os.environ.items() if name not in TUNING}
    environment |= {"OMP_NUM_THREADS": str(cores), "PYTHONPATH": str(README.parent)}
    commands = [[sys.executable, __file__, column, str(batch), str(rank)] for rank in range(size)]
    if column == "ranks":
        words = " : ".join(f"-n 1 {' '.join(command)}" for command in commands).split()
        commands = [["mpirun", *words]]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for command in commands]
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"error: {column} failed; its message stands above")
    return json.loads(printed[0])


def report(results):
    """The page's text."""
    found, about = results["milliseconds"], results["machine"]
    rows = []
    for batch in map(str, BATCHES):
        step, exchange = found["ranks"][batch]
        times = [f"{found[column][batch][0]:.0f}" for column in COLUMNS]
        rows.append([batch, *times, f"{exchange:.0f}", f"{found['one core'][batch][0] / step:.2f}"])
    headings = [heading for heading, *_ in COLUMNS.values()]
    return "\n\n".join([
        table(["batch", *headings, "of 2 ranks: exchange", "2 ranks, times 1 core's speed"], rows),
        f"Milliseconds of a step. {about['processor']} family {about['family']} model {about['model']} "
        f"({about['vectors']}), {about['cores']} cores, {about['blas']}, NumPy {about['numpy']}, {results['mpi']}, "
        f"PyTorch {results['torch']}."])


def main():
    turns = [{column: {batch: measure(column, batch) for batch in BATCHES} for column in COLUMNS} for _ in range(TURNS)]
    medians = {column: {str(batch): np.median([turn[column][batch] for turn in turns], 0).tolist() for batch in BATCHES}
               for column in COLUMNS}
    from mpi4py import MPI

    results = {"machine": machine.describe(), "torch": version("torch"), "milliseconds": medians,
               "mpi": " ".join(MPI.Get_library_version().splitlines()[0].strip("\0").split())}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    text = report(results)
    write_between("ranks", text, PAGE)
    print(text)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        column, batch, rank = sys.argv[1:]
        work(column, int(batch), int(rank))
    else:
        main()
