"""A stand-in for cupy.RawModule on NumPy arrays: kernels compiled by g++ after emulator.h, called through ctypes.

    cuda_module.use(numpy, emulator.RawModule)
    with emulator.lane_order(2): ...
"""

import contextlib
import ctypes
import hashlib
import mmap
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

HEADER = Path(__file__).with_name("emulator.h")
CACHE = Path(tempfile.gettempdir()) / f"minivae-emulator-{os.getuid() if hasattr(os, 'getuid') else 0}"
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-w", "-fno-strict-aliasing", "-fno-gnu-unique", "-ffp-contract=off",
         "-U_FORTIFY_SOURCE"]
TYPES = {"f": "float32", "d": "float64", "i": "int32", "j": "uint32", "x": "int64", "l": "int64", "y": "uint64",
         "m": "uint64", "h": "uint8"}  # by their mangled names
ORDERS = (0, 1, 2)
PAGE = mmap.PAGESIZE
WHY_NOT = None if shutil.which("g++") else "the CUDA emulator needs g++"

_settings = {"order": 0, "seed": 1, "skipped_line": 0, "races": False}
_slack = {}  # of guarded(): address of an array -> the bytes between its end and the page that must not be touched


class EmulatorError(RuntimeError):
    """What a kernel or its launch did wrong."""


@contextlib.contextmanager
def lane_order(order, seed=1):
    """0 first to last with early cp.async, 1 last to first, 2 shuffled, both with late cp.async."""
    with _set(order=order, seed=seed):
        yield


@contextlib.contextmanager
def without(line):
    """The barrier, wait or commit on this line of the compiled code does nothing."""
    with _set(skipped_line=line):
        yield


@contextlib.contextmanager
def races():
    """Kernels compiled in here also fail where two blocks race for a value; see races.h. It takes ten times as long."""
    with _set(races=True):
        yield


@contextlib.contextmanager
def _set(**changes):
    old = {name: _settings[name] for name in changes}
    _settings.update(changes)
    try:
        yield
    finally:
        _settings.update(old)


def barriers(code):
    """[(line, text)] of every barrier, wait and commit in CUDA C, one a line, as `without` counts lines."""
    site = re.compile(r"^(?!\s*(?://|template|__device__)).*(?:__syncthreads|__syncwarp|cp_async_wait<.*>|cp_async_commit)\(")
    return [(i, text.strip()) for i, text in enumerate(code.splitlines(), 1) if site.search(text)]


class RawModule:
    """The part of cupy.RawModule that cuda_module uses."""

    def __init__(self, code, options=(), name_expressions=()):
        glue = "".join(
            f'extern "C" int launch{i}(const unsigned* shape, size_t shared, const int* settings, void** values)'
            f" {{ return emu::launch(&{name}, shape, shared, settings, values); }}\n"
            f'extern "C" const char* signature{i}() {{ return emu::signature(&{name}); }}\n'
            for i, name in enumerate(name_expressions))
        end = 'extern "C" const char* message() { return emu::message; }\n'
        source = f'#include "{HEADER}"\n#line 1 "kernels.cu"\n{code}\n{glue}{end}'
        self._library = ctypes.CDLL(str(_compile(source, _settings["races"])))
        self._library.message.restype = ctypes.c_char_p
        self._names = list(name_expressions)

    def get_function(self, name):
        i = self._names.index(name)
        signature = getattr(self._library, f"signature{i}")
        signature.restype = ctypes.c_char_p
        return Kernel(name, self._library, getattr(self._library, f"launch{i}"), signature().decode().split(",")[:-1])


class Kernel:
    """kernel(grid, block, args, shared_mem=0), as CuPy's, but strict about every argument's type."""

    def __init__(self, name, library, launch, signature):
        self.name, self._library, self._launch, self._signature = name, library, launch, signature
        self.max_dynamic_shared_size_bytes = 48 * 1024

    def __call__(self, grid, block, args, shared_mem=0):
        if len(args) != len(self._signature):
            raise EmulatorError(f"{self.name}: {len(args)} arguments, the kernel takes {len(self._signature)}")
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise EmulatorError(f"{self.name}: {shared_mem} bytes of shared memory, the limit was left at "
                                f"{self.max_dynamic_shared_size_bytes}")
        values = [self._value(i, a, t) for i, (a, t) in enumerate(zip(args, self._signature, strict=True))]
        pointers = (ctypes.c_void_p * max(len(values), 1))(*[ctypes.addressof(v) for v in values])
        shape = (ctypes.c_uint * 6)(*(*grid, 1, 1)[:3], *(*block, 1, 1)[:3])
        settings = (ctypes.c_int * 3)(_settings["order"], _settings["seed"], _settings["skipped_line"])
        if hasattr(self._library, "watch"):
            self._library.watch_none()
            for a in args:
                if isinstance(a, np.ndarray):
                    self._library.watch(ctypes.c_void_p(a.ctypes.data), ctypes.c_size_t(a.nbytes))
        if self._launch(shape, ctypes.c_size_t(shared_mem), settings, pointers):
            raise EmulatorError(f"{self.name}: {self._library.message().decode()}")
        for i, a in enumerate(args):
            if isinstance(a, np.ndarray) and not (_slack.get(a.ctypes.data, np.empty(0)) == 0xFF).all():
                raise EmulatorError(f"{self.name}: wrote past the end of argument {i}")

    def reads_and_writes(self, args):
        """(arrays that it only reads, arrays that it may write) of a launch's arguments, by their pointers' types."""
        arrays = [(a, t) for a, t in zip(args, self._signature, strict=True) if isinstance(a, np.ndarray)]
        return [a for a, t in arrays if t.startswith("PK")], [a for a, t in arrays if not t.startswith("PK")]

    def _value(self, i, argument, mangled):
        expected = TYPES[mangled[-1]]
        if mangled[0] == "P" and isinstance(argument, np.uint64) and argument == 0:
            return ctypes.c_void_p(0)
        if mangled[0] == "P":
            if not isinstance(argument, np.ndarray) or argument.dtype != expected or not argument.flags.c_contiguous:
                raise EmulatorError(f"{self.name}: argument {i} must be a contiguous {expected} array, "
                                    f"not {getattr(argument, 'dtype', type(argument).__name__)}")
            return ctypes.c_void_p(argument.ctypes.data)
        if not isinstance(argument, np.generic) or argument.dtype != expected:  # CuPy would pass a float as a double
            raise EmulatorError(f"{self.name}: argument {i} must be np.{expected}, not {type(argument).__name__}")
        return np.ctypeslib.as_ctypes_type(argument.dtype)(argument.item())


def _compile(source, races):
    """The shared library of `source`, from the cache if it was compiled before."""
    headers = "".join(file.read_text() for file in sorted(HEADER.parent.glob("*.h")))
    key = hashlib.sha256("\0".join([source, headers, *FLAGS, str(races)]).encode()).hexdigest()[:24]
    library = CACHE / f"{key}.so"
    if not library.exists():
        CACHE.mkdir(mode=0o700, exist_ok=True)
        unfinished = CACHE / f"{key}.{os.getpid()}"
        watched = ["-fsanitize=thread", "-DRACES"] if races else []
        for command in (["g++", *FLAGS, *watched, "-c", "-x", "c++", "-", "-o", f"{unfinished}.o"],
                        ["g++", "-shared", f"{unfinished}.o", "-o", unfinished]):  # without the sanitizer's own library
            done = subprocess.run(command, input=source, text=True, capture_output=True)
            if done.returncode:
                raise EmulatorError(done.stderr[:4000])
        Path(f"{unfinished}.o").unlink()
        unfinished.replace(library)
    return library


def guarded(array):
    """A copy that starts on 16 bytes with pages that must not be touched before it and after it.

    The up to 15 bytes between its end and the page read as NaN, and each launch checks that they stay so.
    """
    array = np.asarray(array)
    size = -(-array.nbytes // 16) * 16
    pages = -(-max(size, 1) // PAGE) * PAGE
    memory = mmap.mmap(-1, pages + 2 * PAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for offset in (0, PAGE + pages):
        if ctypes.CDLL(None).mprotect(ctypes.c_void_p(base + offset), ctypes.c_size_t(PAGE), 0):
            raise OSError("mprotect")
    start = PAGE + pages - size
    np.frombuffer(memory, np.uint8, pages, PAGE)[...] = 0xFF
    copy = np.frombuffer(memory, array.dtype, array.size, start).reshape(array.shape)
    copy[...] = array
    _slack[copy.ctypes.data] = np.frombuffer(memory, np.uint8, size - array.nbytes, start + array.nbytes)
    return copy
