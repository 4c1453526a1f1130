"""From a .cu file to a launch: compiling, argument types, device memory, and the one place that knows CuPy.

NVRTC's cache of compiled kernels does not look into included files, so a source is one text: the typedef of T and the
constants that kernels share with Python, device.h, then the files of kernels/. Kernels are taken by name expression,
so templates need no wrapper.
"""

import contextlib
from functools import partial
from pathlib import Path

import numpy as np

from minivae.errors import UserError
from minivae.ops import early_launch, host

KERNELS = Path(__file__).with_name("kernels")
INSTALL = "pip install -r requirements-gpu.txt"
TENSOR_CORES = 80  # the compute capability from which mma takes tf32
EARLY_LAUNCHES = 90  # that from which a launch may begin while the one ahead of it still runs
SYNCHRONOUS = False  # an operation returns before the GPU has done it; looking at a result would wait
IMAGES_AT_ONCE = 1024  # of an evaluation: enough to fill the GPU
ROWS_TOGETHER = 1024  # of an estimate of ln p(x): no kernel rounds a row otherwise because of the others

xp = None  # cupy, or numpy under the tests' emulator
precision = "tf32"  # of float32 products: "tf32" (tensor cores, 10 bits of mantissa) or "fp32"
capability = 0  # 90 for compute capability 9.0
multiprocessors = 0  # of the GPU: work is cut into shares for each of them
shared_memory = 0  # bytes of each of them
_raw_module = None
_launch_early = None
_stream = None
_generation = 0  # counts use(): what was compiled or allocated under another array module is not used again
_branch = None  # the name of the branch whose operations are being launched
_streams = {}  # while a graph is recorded: {None: its own stream, name of a branch: the branch's}
_launched = set()  # then, the branches in whose stream a launch of ours came last


def use(array_module, raw_module, compute_capability=90, multiprocessor_count=132, shared_bytes=228 * 1024,
        stream=None, launch_early=None):
    """Take arrays from array_module and kernels from raw_module: (cupy, cupy.RawModule), or stand-ins for the two.

    stream: the current stream, on which everything runs; None for a stand-in, which has no graphs to replay.
    launch_early: early_launch.launch, or a stand-in where graphs are recorded.
    """
    global xp, capability, multiprocessors, shared_memory, _raw_module, _launch_early, _stream, _generation
    _scratch.clear()
    xp = array_module
    capability = compute_capability
    multiprocessors = multiprocessor_count
    shared_memory = shared_bytes
    _raw_module = raw_module
    _launch_early = launch_early
    _stream = stream
    _generation += 1


def require_gpu(precision="tf32"):
    """Run on the first GPU from now on, in precision "tf32" or "fp32". UserError says what is missing."""
    try:
        import cuda.bindings.driver  # noqa: F401
        import cupy
    except ImportError as e:
        raise UserError(f"--gpu needs CuPy and cuda-bindings ({e}); get them with: {INSTALL}") from e
    try:
        found = cupy.cuda.runtime.getDeviceCount()
        cupy.cuda.nvrtc.getVersion()
    except RuntimeError as e:  # of the driver, or of a library that is not there
        raise UserError(f"--gpu needs an NVIDIA GPU, its driver and CUDA's compiler ({e}); get the driver at "
                        f"nvidia.com/drivers, and the compiler with: {INSTALL}") from e
    if not found:
        raise UserError("--gpu needs an NVIDIA GPU, and none is visible; see nvidia-smi and CUDA_VISIBLE_DEVICES")
    stream = cupy.cuda.Stream(non_blocking=True)  # the default stream cannot be captured
    stream.use()
    device = cupy.cuda.Device()
    use(cupy, cupy.RawModule, int(device.compute_capability), device.attributes["MultiProcessorCount"],
        device.attributes["MaxSharedMemoryPerMultiprocessor"], stream, early_launch.launch)
    set_precision(precision)


def set_precision(name):
    global precision
    precision = name


def tensor_cores(dtype):
    """Whether products of this dtype go to tf32 tensor cores."""
    return np.dtype(dtype) == np.float32 and precision == "tf32" and capability >= TENSOR_CORES


def address(array):
    """Where an array begins; loads of 16 bytes need a multiple of 16."""
    return array.ctypes.data if xp is np else array.data.ptr


def hand_over_stream():
    """Where the current stream is, for a library to launch on, whose launch is then the one ahead; 0 for a stand-in."""
    _launched.discard(_branch)
    stream = _streams.get(_branch, _stream)
    return stream.ptr if stream else 0


class Source:
    """Files of kernels/ compiled as one text, at the first launch with each dtype.

    names: every kernel launched from it, as C++ names it: "adam", "batch_norm<4>".
    constants: what the kernels share with Python, by name; an int is an int there, a float is a T.
    """

    def __init__(self, *files, names, **constants):
        self.files = files
        self.names = names
        self.constants = constants
        self._functions = {}
        self._shared = {}  # by function, the bytes of dynamic shared memory that it may have

    def code(self, dtype):
        """The text that is compiled for T = float or double. Its first line defines T and the constants."""
        scalar = {"float32": "float", "float64": "double"}[np.dtype(dtype).name]
        first_line = f"typedef {scalar} T;"
        for name, value in self.constants.items():
            first_line += f" constexpr {'int' if isinstance(value, int) else 'T'} {name} = {value};"
        return first_line + "\n" + "".join((KERNELS / f).read_text() for f in ("device.h", *self.files))

    def launch(self, name, dtype, grid, block, *args, shared=0):
        """Start kernel `name` on the current stream: `grid` blocks of `block` threads (numbers or tuples).

        An int goes to the kernel as an int, a float as T, a NumPy scalar as itself, None as a null pointer.
        shared: bytes of dynamic shared memory.
        """
        function = self._function(name, np.dtype(dtype))
        if shared > self._shared.get(function, 0):
            self._shared[function] = shared
            function.max_dynamic_shared_size_bytes = shared
            function.preferred_shared_memory_carveout = 100  # %: the cache gets what the blocks leave
        early = _branch in _launched and capability >= EARLY_LAUNCHES
        start = partial(_launch_early, function, _streams[_branch]) if early else function
        start(_tuple(grid), _tuple(block), tuple(_argument(a, dtype) for a in args), shared_mem=shared)
        if _streams:
            _launched.add(_branch)

    def _function(self, name, dtype):
        key = _generation, name, dtype
        if key not in self._functions:
            module = _raw_module(code=self.code(dtype), options=("-std=c++17",), name_expressions=self.names)
            self._functions |= {(_generation, n, dtype): module.get_function(n) for n in self.names}
        return self._functions[key]


def _tuple(size):
    return size if isinstance(size, tuple) else (size,)


def _argument(value, dtype):
    if value is None:
        return np.uint64(0)  # CuPy would hand over no argument at all
    if isinstance(value, np.generic):
        return value
    if isinstance(value, int):
        return np.int32(value)
    if isinstance(value, float):
        return np.dtype(dtype).type(value)
    return value


def to_host(array):
    """The array as NumPy: a copy, which waits for the device."""
    return array if xp is np else xp.asnumpy(array)


class DoubleBuffer:
    """An array's next contents, in pinned memory, then on the device, while kernels read the present ones.

    The array stays where it is: a captured graph goes on reading it.
    """

    def __init__(self, array):
        self.array, self.next = array, xp.zeros_like(array)
        pinned = xp.cuda.alloc_pinned_memory(array.nbytes)
        self.host = np.frombuffer(pinned, array.dtype, array.size).reshape(array.shape)
        self.stream = xp.cuda.Stream(non_blocking=True)
        self.free = xp.cuda.Event(disable_timing=True)  # from then on `next` may be written
        self.free.record()

    def fill(self, values):
        """Upload them, beside what runs on the current stream; returns when they are there. Any thread may call it."""
        self.host[...] = values
        self.stream.wait_event(self.free)
        self.next.set(self.host, self.stream)
        self.stream.synchronize()

    def take(self):
        """The array has what was filled in, for all that the current stream does after this; the host does not wait."""
        self.array[...] = self.next
        self.free.record()


def free_memory():
    """Bytes of the GPU's memory that nobody uses."""
    return xp.cuda.runtime.memGetInfo()[0]


def capture(step):
    """A function that does what step() does: the first call runs it, the second records its launches as a CUDA graph.

    From then on a call is one launch of that graph. From its second call on step() must not allocate arrays or wait for
    the device.
    """
    if _stream is None:
        return step
    calls = 0
    graph = None
    stream = _stream

    def replay():
        nonlocal calls, graph
        calls += 1
        if calls == 1:
            return step()  # compiles kernels, makes buffers
        if graph is None:
            graph = _record(step, stream)
        graph.launch(stream)

    return replay


def _record(step, stream):
    """The launches of step() as a CUDA graph."""
    with stream:  # launches of this thread would go elsewhere if another one had chosen the stream
        stream.begin_capture()
        _streams[None] = stream
        try:
            step()
            for name in list(_streams):
                join(name)
        except BaseException:
            with contextlib.suppress(RuntimeError):  # branches that were not joined; the capture is over all the same
                stream.end_capture()
            raise
        finally:
            _streams.clear()
            _launched.clear()
        return stream.end_capture()


@contextlib.contextmanager
def branch(name):
    """A block whose operations may run beside those that follow it, until join(name).

    Branches of one name run one after the other. In a recorded graph they do run beside each other, each name on a
    stream of its own; elsewhere everything runs in the order of the calls. Each name has its own scratch.
    """
    global _branch
    outer = _branch
    _branch = name
    try:
        if not _streams:
            yield
        else:
            stream = _streams.setdefault(name, type(_stream)(non_blocking=True))
            stream.wait_event(_streams[outer].record())
            _launched.discard(name)
            with stream:
                yield
    finally:
        _branch = outer


def join(name):
    """What follows waits for the branches of that name."""
    if name != _branch and name in _streams:
        _streams[_branch].wait_event(_streams[name].record())
        _launched.discard(_branch)


def beside(first, second):
    """The results of first() and second(), which may run at the same time; they do not call beside themselves."""
    with branch("beside"):
        second_result = second()
    first_result = first()
    join("beside")
    return first_result, second_result


class Buffers(host.Buffers):
    """The same on the device."""

    def zeros(self, shape, dtype):
        return xp.zeros(shape, dtype)


_scratch = {}  # Buffers by the name of the branch


def scratch(name, shape, dtype):
    """An array for the operation at hand, shared by all operations that never run beside it.

    Each leaves its counters at zero, and other contents for nobody.
    """
    return _scratch.setdefault(_branch, Buffers())(name, shape, dtype)
