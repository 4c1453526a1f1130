"""What each rank does in test_ranks.py, under mpirun: ranks_worker.py FILE TASK CASE ...; rank 0 writes FILE."""

import ctypes
import os
import sys
from types import SimpleNamespace

from minivae.training import ranks

world = ranks.start()

import numpy as np  # noqa: E402  (start() has divided the cores)
from test_cuda_step import move_off  # noqa: E402
from test_train import config, dataset  # noqa: E402

from minivae.ops import cuda_module, cuda_ops, nccl, numpy_ops  # noqa: E402
from minivae.sigmas import FITTED_SIGMAS  # noqa: E402
from minivae.training.statistics import estimated  # noqa: E402
from minivae.training.trainer import Trainer  # noqa: E402
from minivae.vae import Widths  # noqa: E402

STEPS = 5
CASES = {"sample": {}, "analytic": {"kl": "analytic"}, "labels": {"label_names": ["ant", "bee", "cat"]}}
CASES |= {sigma: {"sigma": sigma} for sigma in FITTED_SIGMAS}


def trainer(world, ops=numpy_ops, dtype=np.float64, **changes):
    labels = np.arange(100, dtype=np.int32) % 3 if changes.get("label_names") else None
    t = Trainer(config(**changes), dataset().train.images, ops, dtype, Widths((4, 5, 6), 7, (8, 6, 5)), labels, world)
    move_off(t.vae)
    return t


def trace(t):
    """The losses of each step, and what the last one leaves."""
    losses = []
    for step in range(STEPS):
        t.step()
        losses.append(t.ops.to_host(t.history)[step % 4].copy())
    arrays = {"values": t.vae.params.values, "grads": t.vae.params.grads, "moving": t.vae.params.moving_statistics,
              "m": t.adam.m, "v": t.adam.v, "history": t.history}
    found = {"losses": np.array(losses)} | {name: t.ops.to_host(array).copy() for name, array in arrays.items()}
    with estimated(t):
        return found | {"estimated": t.ops.to_host(t.vae.params.moving_statistics).copy()}


def cases(world, some):
    return {f"{case}: {name}": array for case in some
            for name, array in trace(trainer(world, **CASES[case])).items()}


def on_host(*some):
    """These cases; the first one twice alike; all on every rank alike."""
    found = cases(world, some)
    for name, array in trace(trainer(world)).items():
        np.testing.assert_array_equal(array, found[f"sample: {name}"], name)
    for name, array in found.items():
        of_rank_0 = array.copy()
        world.broadcast(of_rank_0)
        np.testing.assert_array_equal(array, of_rank_0, name)
    return found | {"threads": os.environ["OMP_NUM_THREADS"], "gpu": os.environ["CUDA_VISIBLE_DEVICES"]}


class StandIn:
    """cupy.cuda.nccl as far as minivae uses it, by MPI, for arrays that are in the host's memory."""

    NCCL_INT64, NCCL_FLOAT32, NCCL_FLOAT64, NCCL_SUM = 4, 7, 8, 0

    def get_unique_id(self):
        return b"of rank %d" % world.rank

    def NcclCommunicator(self, size, unique_id, rank):
        assert (size, unique_id, rank) == (world.size, b"of rank 0", world.rank)
        return SimpleNamespace(allReduce=self.all_reduce, broadcast=self.broadcast)

    def all_reduce(self, source, target, count, kind, operation, stream):
        assert operation == self.NCCL_SUM
        world.all_reduce(self.array(source, target, count, kind, stream))

    def broadcast(self, source, target, count, kind, root, stream):
        assert root == 0
        world.broadcast(self.array(source, target, count, kind, stream))

    def array(self, source, target, count, kind, stream):
        assert source == target and stream == 0
        kind = {4: ctypes.c_int64, 7: ctypes.c_float, 8: ctypes.c_double}[kind]
        return np.ctypeslib.as_array(ctypes.cast(source, ctypes.POINTER(kind)), (count,))


def on_device():
    """One case by the kernels, under the emulator; then a step that makes no new array, as a captured one must."""
    from emulator import device

    stand_in = StandIn()
    nccl.bindings = lambda: stand_in
    cuda_module.use(device, device.RawModule)
    found = trace(trainer(world.on_gpus(), cuda_ops))
    t = trainer(world.on_gpus(), cuda_ops)
    t.step()
    for name in ("zeros", "full", "asarray", "asnumpy", "ascontiguousarray", "_device"):
        setattr(device, name, None)
    t.device_step()
    return {f"sample: {name}": array for name, array in found.items()}


if __name__ == "__main__":
    file, task, *some = sys.argv[1:]
    found = globals()[task](*some)
    if world.rank == 0:
        np.savez(file, **found)
