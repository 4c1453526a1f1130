"""The processes that mpirun starts for one run, called ranks: who one is, and what all of them do together.

Whatever they do together, they do in the same order. MPI carries what is on the host, by mpi4py, and NCCL the arrays of
GPUs (ops/nccl.py). Without mpirun neither is imported.
"""

import contextlib
import os
import sys
import time
import traceback

from minivae.errors import UserError
from minivae.training.sharded_batch import ShardedBatch

RANK_VARIABLES = "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"  # of Open MPI; of MPICH and others; of PMIx


class Alone:
    """One process without mpirun: what ranks do together, it has done by doing nothing."""

    rank = 0
    size = 1

    def on_gpus(self):
        """The same ranks, for arrays on their GPUs."""
        return self

    def operations(self, ops, count):
        """The operations for this rank's shard of a batch of `count` images."""
        return ops

    def shard(self, count):
        """This rank's rows of `count`. Those of all ranks follow each other, and no two differ by more than one."""
        return slice(0, count)

    def all_reduce(self, array):
        """Each element becomes the sum of all ranks'."""

    def broadcast(self, array):
        """Each element becomes that of rank 0."""

    def barrier(self):
        """Returns when all ranks have come here."""

    def gather(self, rows, whole):
        """The rows of all ranks' shards; `whole` is memory for them."""
        return rows

    def largest(self, number):
        """The largest of all ranks' numbers."""
        return number

    def deal(self, items):
        """Those of the items that this rank has to work on."""
        return items

    def collect(self, results):
        """The results for all items that were dealt, from each rank's list of its own."""
        return results

    @contextlib.contextmanager
    def rank_0_first(self):
        """A block that rank 0 has done when the others begin it."""
        if self.rank:
            self.barrier()
        yield
        if self.rank == 0:
            self.barrier()


class Ranks(Alone):
    """The ranks of mpirun; comm is mpi4py's communicator of them all."""

    def __init__(self, comm):
        self.comm = comm
        self.rank = comm.rank
        self.size = comm.size

    def on_gpus(self):
        return GPURanks(self.comm)

    def operations(self, ops, count):
        return ShardedBatch(ops, self, count)

    def shard(self, count):
        if count < self.size:
            raise UserError(f"{count} images cannot be shared among {self.size} ranks; start mpirun with -n {count}")
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def all_reduce(self, array):
        self.comm.Allreduce(sys.modules["mpi4py.MPI"].IN_PLACE, array)

    def broadcast(self, array):
        self.comm.Bcast(array)

    def barrier(self):
        self.comm.Barrier()

    def gather(self, rows, whole):
        whole[...] = 0
        whole[self.shard(len(whole))] = rows
        self.all_reduce(whole)
        return whole

    def largest(self, number):
        return max(self.comm.allgather(number))

    def deal(self, items):
        return items[self.rank :: self.size]

    def collect(self, results):
        lists = self.comm.allgather(results)
        return [lists[i % self.size][i // self.size] for i in range(sum(map(len, lists)))]


class GPURanks(Ranks):
    """The same for arrays on GPUs, one for each rank."""

    def __init__(self, comm):
        from minivae.ops import nccl

        super().__init__(comm)
        unique_id = nccl.bindings().get_unique_id() if self.rank == 0 else None
        communicator = nccl.Communicator(self.size, comm.bcast(unique_id), self.rank)
        self.all_reduce = communicator.all_reduce
        self.broadcast = communicator.broadcast


def rank_of_launch():
    """This process's rank as mpirun tells it, or None without mpirun."""
    return next((int(os.environ[name]) for name in RANK_VARIABLES if name in os.environ), None)


def start():
    """The ranks of this process's mpirun, or Alone. UserError if mpi4py is missing."""
    if rank_of_launch() is None:
        return Alone()
    os.environ["MPIR_CVAR_SUPPRESS_ABORT_MESSAGE"] = "1"  # of MPICH: our own line is enough
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as e:  # the latter if it finds no MPI
        raise UserError(f"mpirun needs mpi4py and MPI ({e}); run: pip install -r requirements-mpi.txt") from e
    sys.excepthook = _end_all_after
    _divide_machine(MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED))
    return Ranks(MPI.COMM_WORLD)


def _divide_machine(comm):
    """Give each rank of one machine its part of the cores that it may use, and a GPU. NumPy must not be loaded yet."""
    cores = os.sched_getaffinity(0)
    sharing = sum(not cores.isdisjoint(others) for others in comm.allgather(cores))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(cores) // sharing)))
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = "".join(gpus.split(",")[comm.rank : comm.rank + 1]) if gpus else str(comm.rank)


def end_all(status):
    """End all ranks with this exit status."""
    if "mpi4py.MPI" in sys.modules:
        time.sleep(0.5)  # mpirun may drop what was printed just before
        sys.modules["mpi4py.MPI"].COMM_WORLD.Abort(status)


def _end_all_after(*error):
    traceback.print_exception(*error)
    end_all(1)


def let_rank_0_speak_first():
    """Wait on another rank: what goes wrong there often does so on rank 0 too, which says it and ends all."""
    rank = rank_of_launch()
    if rank:
        time.sleep(2 + rank / 10)
