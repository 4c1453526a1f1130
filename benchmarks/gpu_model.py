"""How long a training step takes on an H100 on paper, launch by launch: python benchmarks/gpu_model.py --launches

With --measured benchmarks/results/gpu-NAME.json, what gpu_step.py measured stands beside.

A launch takes a time that does not depend on what runs beside it (its start, dependent reads, last blocks), and then
has work, for which it shares the multiprocessors or the memory. Instructions were counted in compiled code; the other
constants are usual for the card. None of them is measured.
"""

import argparse
import json
import math
import re
from collections import namedtuple
from pathlib import Path

import numpy as np
import roofline
from gpu_step import BATCHES, trainer
from gpu_trace import Kernel
from launches import Recorder, ops_on
from readme import README, table, write_between
from roofline import FLOAT

from minivae.ops import cuda_columns, cuda_conv, cuda_spectrum, numpy_ops
from minivae.training.settings import sigma
from minivae.vae import VAE

SM = 132  # multiprocessors
CYCLES = 1900  # in a microsecond
DRAM, L2 = 3.0e6, 5.5e6  # bytes in a microsecond
L2_BYTES = 40e6  # that fit in the L2 cache beside the rest
NODE = 1.1  # us from the end of one launch of a graph to the start of the next
EARLY = 0.65  # us of it that pass beside the launch ahead, if a launch may begin early
EARLY_PROLOGUE = 0.7  # us of a product's prologue that then do too: where its operands are
READ = 0.17  # us of a read from the L2 cache whose result is waited for
PROLOGUE = 1.6  # us until a block of a product multiplies, and to write its tile
NEXT_TILE = 1.3  # us for each further tile of a block
LAST_BLOCK = 0.8  # us until the last block knows that it is the last
BARRIERS = 0.25  # us of a block's sum in shared memory
MMA = 6.4  # cycles of one of a multiprocessor's four tensor cores for each mma
ISSUED = 0.75  # of its cycles in which one of the four schedulers issues an instruction, at best

# Instructions of a warp for one unit, by operation and tile: test_cuda_compile.py counts them
INSTRUCTIONS = {
    "CONV": {"LARGE": 289, "MEDIUM": 227, "SCALAR": 286, "WIDE": 539},
    "CONV_DX": {"LARGE": 251, "MEDIUM": 187, "SCALAR": 276},
    "CONV_DW": {"LARGE": 425, "MEDIUM": 298, "SCALAR": 465, "WIDE": 751}, "CONV_DX_ALL": {"NARROW": 197}}
MIX = 292  # of the kernel mix for one tile of its contraction
# Cycles of a unit of one block alone
LATENCY = {"LARGE": 900, "MEDIUM": 700, "SCALAR": 700, "WIDE": 900, "NARROW": 600}
MIX_LATENCY = 1100  # of such a tile
MIX_BLOCKS = 4  # of a multiprocessor, by its registers

SUMS = {"batch_norm_sums": 2, "bias_tanh_dx": 3, "student_dx": 4}  # arrays that each reads or writes, then sums rows

# fixed: us that do not depend on other launches; work: us alone on the card; share: of `resource`, while it works
Cost = namedtuple("Cost", "fixed work resource share")
Times = namedtuple("Times", "start end")


def cost(launch):
    """The Cost of a Launch."""
    found = cost_in_turn(launch)
    if not launch.early:
        return found
    gathers = launch.name.startswith("product<") and "CONV_DW" not in launch.name  # which finds them as it goes
    return found._replace(fixed=found.fixed - EARLY - EARLY_PROLOGUE * gathers)


def cost_in_turn(launch):
    """Its Cost if it begins when the launch ahead has ended."""
    name = re.match(r"\w+", launch.name)[0]
    if name == "product":
        return product(launch)
    arrays = [a for a in launch.args if isinstance(a, np.ndarray) and a.ndim]
    given = launch.args[0].nbytes if isinstance(launch.args[0], np.ndarray) else 0
    if name == "batch_norm":
        return memory(0.4 + READ, 2 * given)
    if name == "batch_norm_dx":
        return memory(0.4 + 2 * READ, 3 * given)
    if name in SUMS:
        return column_sums(launch, SUMS[name] * given)
    if name == "adam":
        return Cost(NODE + 0.8, 7 * arrays[-1].nbytes / (0.92 * DRAM), "memory", 1)
    if name == "tanh_gaussian":
        return memory(0.5 + 0.6 + LAST_BLOCK + 1.2, 4 * given)
    if name == "gather":
        return Cost(NODE + 1.2, 1.25 * arrays[-1].nbytes / DRAM, "memory", 1)
    if name == "dequantize":
        return memory(0.6 + READ, 2 * arrays[-1].nbytes)
    if name in ("bias_tanh", "subtract", "squares", "log_energy"):
        return memory(0.4, 3 * given)
    if name == "student":
        return memory(0.6 + READ + 2 * BARRIERS, 2 * given)
    if name == "mix":
        return mix(launch)
    others = {"normal": 2.5, "record": 2.2, "latent": 1.2, "latent_dx": 1.2, "add": 0.9, "adam_rate": 2.2,
              "batch_moments": 3}
    return Cost(NODE + others[name], 0, "memory", 0)


def memory(fixed, nbytes, least=0.5):
    """The Cost of a kernel that reads and writes nbytes, for which it takes `least` us even if they are few."""
    work = nbytes / (DRAM if nbytes > L2_BYTES else L2)
    return Cost(NODE + fixed, max(work, least), "memory", min(work / least, 1))


def column_sums(launch, nbytes):
    x = launch.args[0]
    shares = launch.grid[0]
    vector = 4 if "<4>" in launch.name else 1
    lanes = cuda_columns.THREADS * vector // min(x.shape[-1], cuda_columns.WIDTH)
    fixed = 0.4 + READ + 2 * BARRIERS
    if shares == 1:
        fixed += 0.4
    else:
        rounds = math.ceil(shares / lanes / cuda_columns.AHEAD)
        fixed += LAST_BLOCK + 1.1 * READ * rounds + 2 * BARRIERS + 0.2
    rows = math.ceil(x.size / x.shape[-1] / (shares * lanes))
    return memory(fixed, nbytes, 0.4 * rows / 4)


def mix(launch):
    blocks = math.prod(launch.grid)
    beside = min(MIX_BLOCKS, math.ceil(blocks / SM))
    busy = beside * cuda_spectrum.THREADS // 128 * MIX / ISSUED
    cycles = max(busy, MIX_LATENCY)
    tiles = math.ceil(int(launch.args[3]) / cuda_spectrum.SIDE)
    work = math.ceil(blocks / (MIX_BLOCKS * SM)) * tiles * cycles / CYCLES
    return Cost(NODE + 0.8, work, "multiprocessors", busy / cycles * min(1, blocks / SM))


def product(launch):
    op, *numbers = re.findall(r"\w+", launch.name.partition("<")[2])
    tile = tile_of(numbers)
    moments = launch.args[3]
    images, H, W, I, h, w, O, kernel, stride, _, _, share, units, row_tiles = map(int, launch.args[8:])  # noqa: E741
    columns = {"CONV_DX": I, "CONV_DX_ALL": stride**2 * I}.get(op, O)
    per_tile = units / (row_tiles * math.ceil(columns / tile.columns))
    tiles_of_block = max(1, share / per_tile)
    blocks = launch.grid[0]
    beside = min(tile.blocks, math.ceil(blocks / SM))  # blocks of a multiprocessor
    title = title_of(tile)
    mmas = tile.warp_rows // 16 * tile.warp_columns // 8 * 4
    busy = beside * max(INSTRUCTIONS[op][title], MMA * mmas) / ISSUED
    cycles = max(busy, LATENCY[title])
    work = math.ceil(blocks / (tile.blocks * SM)) * share * cycles / CYCLES
    nbytes = 4 * (images * (H * W * I + h * w * O) + kernel**2 * I * O)
    fixed = PROLOGUE + 0.3 + NEXT_TILE * (tiles_of_block - 1)
    fixed += sum_of_pieces(pieces(per_tile, share), tile)
    if isinstance(moments, np.ndarray):
        fixed += merge(row_tiles, tile, tiles_of_block)
    return Cost(NODE + fixed, max(work, nbytes / L2), "multiprocessors", busy / cycles * min(1, blocks / SM))


def pieces(per_tile, share):
    if share % per_tile == 0:
        return 1
    if share > per_tile:
        return 2
    return math.ceil(per_tile / share) + (per_tile % share > 0)


def sum_of_pieces(count, tile):
    """us until a tile's `count` pieces are added up."""
    fixed = 0
    nbytes = 4 * tile.rows * tile.columns
    while count > 1:
        members = min(count, cuda_conv.RADIX)
        fixed += LAST_BLOCK + max(math.ceil(members / 2) * READ * 1.3, members * nbytes / (64 * CYCLES))
        count = math.ceil(count / cuda_conv.RADIX)
    return fixed


def merge(row_tiles, tile, tiles_of_block):
    """us until the moments of all tiles are one."""
    fixed = 0.4 * tiles_of_block
    parts = cuda_conv.THREADS // tile.columns
    while True:
        members = min(row_tiles, cuda_conv.MOMENTS_RADIX)
        fixed += LAST_BLOCK + math.ceil(members / parts / 8) * (READ + 0.02)
        if row_tiles <= cuda_conv.MOMENTS_RADIX:
            return fixed
        row_tiles = math.ceil(row_tiles / cuda_conv.MOMENTS_RADIX)


TILES = {name: getattr(cuda_conv, name) for name in LATENCY}


def tile_of(numbers):
    return next(t for t in TILES.values() if [str(int(v)) for v in t] == numbers[1:])


def title_of(tile):
    return next(name for name, t in TILES.items() if t == tile)


def step(batch, sigma=1.0):
    """The Launches of one step of the reference's model on an H100."""
    recorder = Recorder()
    t = trainer(batch, ops=ops_on(recorder, multiprocessors=SM), sigma=sigma)
    t.step()
    t.step()  # which is recorded
    return recorder.launches


def in_turn(launches):
    """The same, none of which begins early."""
    return [launch._replace(early=False) for launch in launches]


def schedule(launches):
    """[Times] of the launches, each as early as those that it waits for allow; those at work share a resource."""
    costs = [cost(launch) for launch in launches]
    waits = [set(launch.after) for launch in launches]
    starting = {}  # launch: us until it works
    working = {}  # launch: us of work left
    begun = {}
    times = {}
    now = 0.0
    while len(times) < len(launches):
        for i in range(len(launches)):
            if i not in begun and not waits[i]:
                begun[i] = now
                starting[i] = costs[i].fixed
        load = {}
        for i in working:
            load[costs[i].resource] = load.get(costs[i].resource, 0) + costs[i].share
        speed = {i: 1 / max(1, load[costs[i].resource]) for i in working}
        passed = min([*starting.values(), *(left / speed[i] for i, left in working.items())])
        now += passed
        for i in list(working):
            working[i] -= passed * speed[i]
            if working[i] < 1e-9:
                del working[i]
                times[i] = Times(begun[i], now)
                for others in waits:
                    others.discard(i)
        for i in list(starting):
            starting[i] -= passed
            if starting[i] < 1e-9:
                del starting[i]
                working[i] = max(costs[i].work, 1e-6)
    return [times[i] for i in range(len(launches))]


def duration(launches):
    """us of a step."""
    return max(at.end for at in schedule(launches))


def ladder():
    """The table of docs/kernels.md."""
    product = next(p for p in roofline.products(VAE((32, 32, 3), 10, numpy_ops), 64) if p.name == "gen/tconv1")
    multiplications = product.flops / 2 / SM / CYCLES  # us of a multiprocessor that does one a cycle
    start = NODE + PROLOGUE
    naive = start + multiplications / 32 * 2  # two loads for the 32 of a warp
    registers = start + multiplications / 128 / ISSUED  # 128 lanes add at a time
    mmas = start + multiplications / 1024 * MMA / 4 / ISSUED
    im2col = NODE + 2 * FLOAT * np.prod(product.small[:3]) * np.prod(product.w[:3]) / L2  # written, then read
    moments = sum(memory(0.4 + READ + LAST_BLOCK + 2 * BARRIERS, FLOAT * np.prod(product.big))[:2])
    forward = next(launch for launch in in_turn(step(64)) if launch.name.startswith("product<CONV_DX,"))
    rows = [["a naive product; im2col, moments", f"{naive + im2col + moments:.0f}"],
            ["shared memory and registers; im2col, moments", f"{registers + im2col + moments:.0f}"],
            ["tensor cores; im2col, moments", f"{mmas + im2col + moments:.0f}"],
            ["gathered operands, equal shares, fused moments", f"{sum(cost(forward)[:2]):.0f}"]]
    for batch in BATCHES:
        launches = step(batch)
        alone = sum(c.fixed + c.work for c in map(cost, in_turn(launches)))
        rows.append([f"a step at batch {batch}, {len(launches)} launches one after the other", f"{alone:.0f}"])
        rows.append([f"a step at batch {batch} with branches", f"{duration(in_turn(launches)):.0f}"])
        rows.append([f"a step at batch {batch} with branches, launched early", f"{duration(launches):.0f}"])
    for batch in BATCHES:
        launches = step(batch, "spectrum")
        title = f"a step of sigma spectrum at batch {batch}, {len(launches)} launches with branches, launched early"
        rows.append([title, f"{duration(launches):.0f}"])
    return table(["", "us, estimated"], rows)


def timeline(path, batch):
    """The Kernels of a step that gpu_step.py measured."""
    steps = json.loads(path.read_text())["steps"]
    found = [step["timeline"] for step in steps if step["batch"] == batch and "timeline" in step]
    return [Kernel(name, tuple(grid), start, us) for name, grid, start, us in found[0]] if found else []


def beside(launches, times, kernels):
    """Print each launch on paper and measured, paired by kernel and grid in the order of their starts.

    What is on paper begins when the launch ahead has ended, what is measured when the kernel runs.
    """
    left = list(kernels)
    for launch, at in sorted(zip(launches, times, strict=True), key=lambda pair: pair[1].start):
        grid = (*launch.grid, 1, 1)[:3]
        same = [kernel for kernel in left if (kernel.name, kernel.grid) == (launch.name, grid)]
        text = "not measured"
        if same:
            left.remove(same[0])
            text = f"{same[0].start:7.1f} for {same[0].us:5.1f}"
        print(f"{at.start:7.1f} for {at.end - at.start:5.1f} us on paper, {text:>17}  {launch.name} {launch.grid}")
    for kernel in left:
        print(f"not on paper: {kernel.start:.1f} for {kernel.us:.1f} us  {kernel.name} {kernel.grid}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--sigma", type=sigma, default=1.0)
    parser.add_argument("--launches", action="store_true", help="list each of them")
    parser.add_argument("--measured", type=Path, help="gpu_step.py's results, to list beside them")
    parser.add_argument("--write", action="store_true", help="write the table of docs/kernels.md")
    args = parser.parse_args()
    if args.write:
        write_between("kernels", ladder(), README.parent / "docs" / "kernels.md")
    for batch in args.batch:
        launches = step(batch, args.sigma)
        times = schedule(launches)
        if args.measured:
            beside(launches, times, timeline(args.measured, batch))
        elif args.launches:
            for launch, at in zip(launches, times, strict=True):
                print(f"{at.start:7.1f} to {at.end:7.1f} us: {at.end - at.start:5.1f}  {launch.name} {launch.grid}")
        end = max(at.end for at in times)
        alone = sum(c.fixed + c.work for c in map(cost, in_turn(launches)))
        print(f"batch {batch}: {len(launches)} launches, {end:.0f} us; one after the other {alone:.0f} us")


if __name__ == "__main__":
    main()
