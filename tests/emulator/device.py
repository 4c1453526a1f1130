"""A stand-in for cupy, as far as minivae uses it: arrays that, as CuPy's, never meet a NumPy array by accident.

    cuda_module.use(device, device.RawModule)

They are NumPy arrays underneath, for the emulator's kernels. Mixing them with NumPy arrays, handing them to a function
of NumPy's, or a NumPy array to a kernel, raises TypeError; asarray and asnumpy are the only ways between the two.
"""

from types import SimpleNamespace

import numpy as np
from emulator import emulator


class ndarray(np.ndarray):
    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        outputs = () if out is None else out
        host = [_host(a) for a in (*inputs, *outputs)]
        if out is not None:
            options["out"] = tuple(host[len(inputs) :])
        result = getattr(ufunc, method)(*host[: len(inputs)], **options)
        return result if out is None and result is None else _device(result) if out is None else out[0]

    def __array_function__(self, function, *_):
        raise TypeError(f"np.{function.__name__} of an array on the device")

    def __getitem__(self, index):
        found = super().__getitem__(_index(index))
        return found if isinstance(found, ndarray) else _device(found)

    def __setitem__(self, index, value):
        self.view(np.ndarray)[_index(index)] = _host(value)

    def set(self, values, stream):
        """Copies when the stream is waited for, as late as can be; only on one that has waited for an event before."""
        if type(values) is not np.ndarray or (values.shape, values.dtype) != (self.shape, self.dtype):
            raise TypeError("only a NumPy array of the same shape and dtype can be set")
        if not stream.work:
            raise RuntimeError("a copy that may come before what reads the old contents has ended")
        stream.work.append(lambda: np.copyto(self.view(np.ndarray), values))


def _device(value):
    return np.asarray(value).view(ndarray)


def _host(value):
    """A device array or a scalar, to compute with."""
    if isinstance(value, np.ndarray) and not isinstance(value, ndarray):
        raise TypeError("a NumPy array among arrays on the device")
    return value.view(np.ndarray) if isinstance(value, ndarray) else value


def _index(index):
    return tuple(_host(i) for i in index) if isinstance(index, tuple) else _host(index)


def asarray(value, dtype=None):
    return value if isinstance(value, ndarray) and dtype in (None, value.dtype) else _device(np.array(value, dtype))


def asnumpy(array):
    return _host(array).copy()


def ascontiguousarray(array):
    return _device(np.ascontiguousarray(_host(array)))


def zeros(shape, dtype):
    return _device(np.zeros(shape, dtype))


def full(shape, value, dtype):
    return _device(np.full(shape, value, dtype))


def zeros_like(array):
    return zeros(array.shape, array.dtype)


def arange(count, dtype):
    return _device(np.arange(count, dtype=dtype))


exp, logaddexp, isfinite = np.exp, np.logaddexp, np.isfinite  # __array_ufunc__ looks after them


class Event:
    def __init__(self, disable_timing):
        self.recorded = False

    def record(self):
        self.recorded = True


class Stream:
    """One beside the current stream, on which everything is done at once."""

    def __init__(self, non_blocking):
        self.work = []

    def wait_event(self, event):
        if not event.recorded:
            raise RuntimeError("an event that nobody recorded does not order anything")
        self.work.append(lambda: None)

    def synchronize(self):
        for do in self.work:
            do()
        self.work = []


cuda = SimpleNamespace(Event=Event, Stream=Stream, alloc_pinned_memory=bytearray,
                       runtime=SimpleNamespace(memGetInfo=lambda: (2**40, 2**40)))


class Kernel(emulator.Kernel):
    def __call__(self, grid, block, args, shared_mem=0):
        super().__call__(grid, block, tuple(_host(a) for a in args), shared_mem)


class RawModule(emulator.RawModule):
    def get_function(self, name):
        kernel = super().get_function(name)
        return Kernel(kernel.name, kernel._library, kernel._launch, kernel._signature)
