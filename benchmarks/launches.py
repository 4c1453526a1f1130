"""The CUDA graph of a training step, recorded without a GPU: its launches, and which of them each waits for."""

import random
from collections import namedtuple
from types import SimpleNamespace

import numpy as np

from minivae.ops import cuda_module, cuda_ops, host

# kernel: None, or what runs it; after: the places in the graph of the launches that it waits for; early: whether it may
# begin while the one that it waits for still runs
Launch = namedtuple("Launch", "name kernel grid block args shared after early")


class Recorder:
    """What cuda_module.use takes in place of cupy.RawModule (`module`) and of a stream (`stream()`).

    inner: a RawModule to run the kernels, or None if nothing is to run. launches: those of the last graph.
    seed: of the order in which a graph runs its launches, any that their waits allow.
    """

    def __init__(self, inner=None, seed=0):
        self.inner = inner
        self.random = random.Random(seed)
        self.launches = []
        self.streams = []  # that were entered, the current one last
        self.capturing = False

    def module(self, **source):
        inner = self.inner(**source) if self.inner else None
        return SimpleNamespace(get_function=lambda name: _Function(self, name, inner and inner.get_function(name)))

    def stream(self):
        return type("Stream", (_Stream,), {"recorder": self})(non_blocking=True)

    def order(self):
        """The places of the launches in an order that their waits allow."""
        waits = [set(launch.after) for launch in self.launches]
        left = set(range(len(waits)))
        while left:
            place = self.random.choice([i for i in sorted(left) if not waits[i] & left])
            left.remove(place)
            yield place

    def ancestors(self):
        """For each launch the set of those that have ended when it starts."""
        found = []
        for launch in self.launches:
            found.append(launch.after.union(*(found[i] for i in launch.after)))
        return found


def ops_on(recorder, capability=90, multiprocessors=132):
    """cuda_ops on NumPy's arrays, with its launches handed to the recorder."""
    cuda_module.use(np, recorder.module, capability, multiprocessors, stream=recorder.stream(),
                    launch_early=_Function.launch_early)
    return SimpleNamespace(**vars(cuda_ops) | {"xp": np, "DoubleBuffer": host.DoubleBuffer,
                                               "free_memory": host.free_memory})


class _Function:
    """The part of cupy.RawKernel that cuda_module uses."""

    def __init__(self, recorder, name, kernel):
        self.recorder = recorder
        self.name = name
        self.kernel = kernel
        self.max_dynamic_shared_size_bytes = 0

    def launch_early(self, stream, grid, block, args, shared_mem):
        """As early_launch.launch, for a launch that waits for the one ahead of it on its stream and for no other."""
        assert stream is self.recorder.streams[-1] and stream.ends == {stream.last}
        self(grid, block, args, shared_mem, early=True)

    def __call__(self, grid, block, args, shared_mem=0, early=False):
        launches = self.recorder.launches
        if self.kernel:
            self.kernel.max_dynamic_shared_size_bytes = self.max_dynamic_shared_size_bytes
        if self.recorder.capturing:
            stream = self.recorder.streams[-1]
            launches.append(Launch(self.name, self.kernel, grid, block, args, shared_mem, frozenset(stream.ends),
                                   early))
            stream.last = len(launches) - 1
            stream.ends = {stream.last}
        elif self.kernel:
            self.kernel(grid, block, args, shared_mem)


class _Stream:
    """The part of cupy.cuda.Stream, and of a graph, that cuda_module uses. An event is the launches it comes after."""

    ptr = 0

    def __init__(self, non_blocking):
        self.ends = set()  # the launches that the next one waits for
        self.last = None  # the launch on it that came last

    def __enter__(self):
        self.recorder.streams.append(self)
        return self

    def __exit__(self, *_):
        self.recorder.streams.pop()

    def begin_capture(self):
        self.recorder.launches = []
        self.recorder.capturing = True

    def end_capture(self):
        self.recorder.capturing = False
        return self

    def launch(self, stream):
        for place in self.recorder.order() if self.recorder.inner else ():
            launch = self.recorder.launches[place]
            launch.kernel(launch.grid, launch.block, launch.args, launch.shared)

    def record(self):
        return frozenset(self.ends)

    def wait_event(self, event):
        self.ends |= event
