"""What a step of training takes with images in memory and with the same images streamed from their file.

    python benchmarks/streaming.py [--rounds 5] [--steps 40]

prints the median of each and their ratio, and what looking for values that are not finite costs a step. The images are
housenumbers, made on first use; the model is the default one; each round times both, one after the other.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from minivae.images import data, stream
from minivae.ops import numpy_ops
from minivae.training.settings import Config
from minivae.training.trainer import Trainer

FOLDER = Path(__file__).resolve().parent.parent / "data"


def trainer():
    dataset = data.load("housenumbers", FOLDER)
    config = Config("housenumbers", 1, 64, 10, 1e-3, 0, "sample", 20, 1, 1, dataset.train.images.shape[1:], "", "")
    return Trainer(config, dataset.train.images, numpy_ops)


def seconds(function, count):
    start = time.perf_counter()
    for _ in range(count):
        function()
    return (time.perf_counter() - start) / count


def main(rounds, steps):
    held = trainer()
    stream.MEMORY_FRACTION = 0  # nothing fits
    streamed = trainer()
    assert isinstance(streamed.batches.images, stream.Streamed)
    grads = held.vae.params.grads
    times = {"in memory": [], "streamed": [], "check": []}
    for _ in range(rounds):
        times["in memory"].append(seconds(held.step, steps))
        times["streamed"].append(seconds(streamed.step, steps))
        times["check"].append(seconds(lambda: np.isfinite(np.dot(grads, grads)), steps))
    a, b, check = (statistics.median(times[name]) for name in ("in memory", "streamed", "check"))
    print(f"a step with 64 images, median of {rounds} rounds of {steps}:")
    print(f"in memory {a * 1e3:.1f} ms, streamed {b * 1e3:.1f} ms: {100 * (b / a - 1):+.1f} %")
    print(f"looking for values that are not finite {check * 1e3:.2f} ms: {100 * check / a:.2f} % of a step")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    main(**vars(parser.parse_args()))
