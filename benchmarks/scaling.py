"""How fast a training step is on several H100 on paper: python benchmarks/scaling.py writes docs/scaling.md's table.

A step takes what gpu_model.py finds for one GPU's images, and what the GPUs exchange, none of it beside other work: the
all-reduces of batch norm and of the losses, each with the small launches around it, and that of the gradients. Nothing
here is measured.
"""

from functools import cache

import gpu_model
import ranks
from readme import table, write_between

from minivae.training.ranks import Alone
from minivae.training.sharded_batch import ShardedBatch

# Bytes in a microsecond that an all-reduce moves through each GPU, and microseconds of an all-reduce of few bytes: what
# NCCL usually reaches.
LINKS = {"NVLink, one machine": (350e3, 12), "InfiniBand of 400 Gb/s, a machine each": (40e3, 30)}
GPUS = 2, 4, 8
BATCHES = 64, 256, 1024, 4096
LARGEST = 2**15
LAUNCHES = 3  # of one value for each channel, around each all-reduce: copies, and what merges moments
LAUNCH = gpu_model.NODE + 0.5  # us of each


class First(Alone):
    """Rank 0 of two, which counts the bytes of each all-reduce."""

    size = 2

    def __init__(self):
        self.sent = []

    def operations(self, ops, count):
        return ShardedBatch(ops, self, count)

    def shard(self, count):
        return slice(0, count // 2)

    def all_reduce(self, array):
        self.sent.append(array.nbytes)


@cache
def exchanged():
    """(how many all-reduces a step has beside that of the gradients, the bytes of that one)"""
    world = First()
    ranks.minivae_step(4, world)()
    *few, gradients = world.sent
    return len(few) + 2, gradients  # rec and kl of the whole batch too


@cache
def one(batch):
    """Microseconds of a step on one GPU; beyond gpu_model's largest batch in proportion."""
    largest = max(BATCHES)
    if batch > largest:
        return one(largest) * batch / largest
    return max(at.end for at in gpu_model.schedule(gpu_model.step(batch)))


def step(batch, gpus, link):
    """Microseconds of a step on several."""
    rate, latency = LINKS[link]
    few, gradients = exchanged()
    return one(batch // gpus) + (few + 1) * latency + few * LAUNCHES * LAUNCH + 2 * (gpus - 1) / gpus * gradients / rate


def worth(gpus, link):
    """The least batch, a power of two, at which each GPU does at least half of what it would do alone."""
    batch = gpus
    while batch <= LARGEST and one(batch) / step(batch, gpus, link) < gpus / 2:
        batch *= 2
    return f"{batch:,}" if batch <= LARGEST else f"more than {LARGEST:,}"


def report():
    """The page's text."""
    rows = [[f"{gpus} GPUs, {link}", *(f"{one(batch) / step(batch, gpus, link):.2f}" for batch in BATCHES),
             worth(gpus, link)] for link in LINKS for gpus in GPUS]
    alone = ["microseconds on one", *(f"{one(batch):.0f}" for batch in BATCHES), ""]
    few, gradients = exchanged()
    header = ["times as fast as one", *(f"batch {batch:,}" for batch in BATCHES), "half of each from batch"]
    return (f"{table(header, [alone, *rows])}\n\nA step has {few} small all-reduces, and one of {gradients / 1e6:.1f} "
            "MB of gradients.")


if __name__ == "__main__":
    text = report()
    write_between("paper", text, ranks.PAGE)
    print(text)
