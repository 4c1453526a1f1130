"""The processes of cpu_step.py: each task prints its results as JSON, one value a line."""

import json
import resource
import statistics
import sys
import time
from collections import Counter

import machine
import numpy as np

BATCH, LATENT, SHAPE = 64, 10, (32, 32, 3)
BATCHES, LATENTS = (16, 64, 256, 1024), tuple(2**i for i in range(1, 10))
ROUNDS, WARM_UP, GROWTH_ROUNDS = 20, 2, 3
PARTS = {
    "im2col": "im2col", "conv": "im2col", "conv_dw": "im2col", "conv_dx": "col2im", "dense": "rest", "dense_dx": "rest",
    "dense_dw": "rest", "batch_moments": "batch norm", "batch_norm": "batch norm", "batch_norm_dx": "batch norm",
    "tanh_gaussian": "tanh and loss", "adam": "Adam",
}


def say(value):
    print(json.dumps(value), flush=True)


def inputs(batch, latent):
    rng = np.random.default_rng(0)
    return (rng.uniform(-1, 1, (batch, *SHAPE)).astype(np.float32),
            rng.standard_normal((batch, latent)).astype(np.float32))


def minivae_step(batch=BATCH, latent=LATENT):
    """A function that makes one update and returns the loss before it; and the model."""
    from minivae.adam import Adam
    from minivae.ops import numpy_ops
    from minivae.vae import VAE

    x, eps = inputs(batch, latent)
    vae = VAE(SHAPE, latent, numpy_ops)
    adam = Adam(vae.params)

    def step():
        rec, kl = vae.forward(x, eps)
        vae.backward()
        adam.update()
        adam.t += 1
        return float((rec + kl).mean())

    return step, vae


def torch_step(column, params=None):
    """The same of a column of torch_vae; with minivae's weights if its Parameters are given."""
    import torch
    from torch_vae import TorchVAE, training_step

    x, eps = (torch.from_numpy(array) for array in inputs(BATCH, LATENT))
    model = TorchVAE(LATENT)
    if params is not None:
        model.load(params)
    step, x = training_step(model, x.permute(0, 3, 1, 2), column)
    return lambda: step(x, eps).item()


def describe():
    """The machine, and its rate of matrix products."""
    say(machine.describe() | {"sgemm_gflops": machine.sgemm_rate()})


def agree():
    """The losses of the first steps of both implementations, from the same weights."""
    mine, vae = minivae_step()
    theirs = torch_step("eager", vae.params)
    say([[mine(), theirs()] for _ in range(3)])


def steps(column):
    """Seconds of as many steps as each line of the input says; then this process's peak of memory, in MB."""
    step = minivae_step()[0] if column == "minivae" else torch_step(column)
    step()
    say("first step done")
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        say(seconds)
    say(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


class Parts:
    """Processor seconds of all threads by part of the step. Products are counted apart from the operation they are in;
    so is an operation inside another one."""

    def __init__(self):
        self.seconds, self._inner, self._products = Counter(), [0.0], []

    def watch(self, module, function, name):
        """Count module.function, called by the main thread, as part `name`."""
        original = getattr(module, function)

        def timed(*args, **options):
            start, before, self._inner, outer = time.process_time(), len(self._products), [0.0], self._inner
            result = original(*args, **options)
            spent, products = time.process_time() - start, self._products[before:]
            del self._products[before:]
            for kind, seconds in products:
                self.seconds[kind] += seconds
            self.seconds[name] += spent - sum(seconds for _, seconds in products) - self._inner[0]
            outer[0] += spent
            self._inner = outer
            return result

        setattr(module, function, timed)

    def watch_products(self, module, matrices="matrix products"):
        """Count np.matmul of a module, by any thread: of two matrices as part `matrices`, of stacks as products."""
        parts = self

        class Numpy:
            def __getattr__(self, name):
                return getattr(np, name)

            def matmul(self, *args, **options):
                start = time.thread_time()
                result = np.matmul(*args, **options)
                kind = matrices if result.ndim < 3 else "matrix products"
                parts._products.append((kind, time.thread_time() - start))
                return result

        module.np = Numpy()


def parts():
    """Milliseconds of a step by part: each part's processor time over the number of cores, and what they waited."""
    from minivae.ops import numpy_conv, numpy_ops, numpy_toom_cook

    watch = Parts()
    watch.watch_products(numpy_conv)
    watch.watch_products(numpy_ops)
    watch.watch_products(numpy_toom_cook, "transforms")
    for function, name in PARTS.items():
        watch.watch(numpy_ops, function, name)
    step, vae = minivae_step()
    blocks = [*vars(vae.encoder).values(), *vars(vae.generator).values()]
    found = [_measured(step, watch) for _ in range(WARM_UP + ROUNDS)][WARM_UP:]
    for block in blocks:
        if hasattr(block, "norm"):
            block.norm.slope = 1
    without = [_measured(step, watch) for _ in range(WARM_UP + ROUNDS)][WARM_UP:]
    split = {name: statistics.median(f[name] for f in found) for name in found[0]}
    split["batch norm"] = statistics.median(f["batch norm"] for f in without)
    split["leaky ReLU"] = statistics.median(f["batch norm"] for f in found) - split["batch norm"]
    say(split)


def _measured(step, watch):
    watch.seconds.clear()
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    split = dict(watch.seconds)
    split["rest"] = cpu - sum(split.values())
    split["waiting"] = wall * machine.cores() - cpu
    return {name: seconds / machine.cores() * 1e3 for name, seconds in split.items()} | {"step": wall * 1e3}


def growth():
    """Milliseconds of a step by batch size and by size of the latent code, in rounds of one step each."""
    models = {f"batch {n}": minivae_step(batch=n)[0] for n in BATCHES}
    models |= {f"latent {n}": minivae_step(latent=n)[0] for n in LATENTS}
    seconds = {name: [] for name in models}
    for _ in range(1 + GROWTH_ROUNDS):
        for name, step in models.items():
            step()  # the model's arrays come back into the caches
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    say({name: statistics.median(times[1:]) * 1e3 for name, times in seconds.items()})


def floating_point_operations():
    """Of a step's products, without those of taps that fall outside the image."""
    import roofline

    from minivae.ops.geometry import Geometry

    def rows(g):
        return sum(small.stop - small.start for _, _, small, _ in g.row_taps)

    def share(g):
        across = Geometry(g.width, g.height, g.kernel, g.stride)
        return rows(g) * rows(across) / (g.out_height * g.out_width * g.kernel**2)

    products = roofline.products(minivae_step()[1], BATCH)
    say(float(sum(p.flops * len(p.passes) * (share(p.geometry) if p.geometry else 1) for p in products)))


if __name__ == "__main__":
    task, *arguments = sys.argv[1:]
    globals()[task](*arguments)
