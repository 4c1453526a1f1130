"""NCCL, by CuPy's own bindings: what the GPUs of several processes do together. Only the GPU waits in a call."""

import numpy as np

from minivae.errors import UserError
from minivae.ops import cuda_module


def bindings():
    """cupy.cuda.nccl. UserError if the library is missing."""
    try:
        from cupy.cuda import nccl

        nccl.get_version()
    except (ImportError, AttributeError, RuntimeError) as e:
        raise UserError(f"--gpu under mpirun needs NCCL ({e}); get it with: pip install nvidia-nccl-cu13") from e
    return nccl


class Communicator:
    """`size` processes, of which this is number `rank`, each with a GPU of its own.

    unique_id is bindings().get_unique_id() of one of them. Source: NCCL's user guide, "Collective Operations".
    """

    def __init__(self, size, unique_id, rank):
        self.nccl = bindings()
        self.communicator = self.nccl.NcclCommunicator(size, unique_id, rank)

    def all_reduce(self, array):
        """Each element becomes the sum of all processes'."""
        self.communicator.allReduce(*self._in_place(array), self.nccl.NCCL_SUM, cuda_module.hand_over_stream())

    def broadcast(self, array):
        """Each element becomes that of process 0."""
        self.communicator.broadcast(*self._in_place(array), 0, cuda_module.hand_over_stream())

    def _in_place(self, array):
        """Where from, where to, how many, of which type."""
        types = {"int64": self.nccl.NCCL_INT64, "float32": self.nccl.NCCL_FLOAT32, "float64": self.nccl.NCCL_FLOAT64}
        address = cuda_module.address(array)
        return address, address, array.size, types[np.dtype(array.dtype).name]
