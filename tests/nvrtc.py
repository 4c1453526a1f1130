"""CUDA C compiled as CuPy compiles it, by the nvidia-cuda-nvrtc wheel: no GPU, driver or CuPy needed."""

import ctypes
import importlib.util
import re
from collections import namedtuple
from functools import cache
from pathlib import Path

# bytes of stack, of spilled registers and of shared memory
Kernel = namedtuple("Kernel", "symbol registers stack spilled shared")
SUMMARY = re.compile(r"Compiling entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
                     r"(\d+) bytes spill loads.*?Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?", re.DOTALL)


@cache
def library():
    """NVRTC, or None where the wheel is not installed."""
    spec = importlib.util.find_spec("nvidia.cu13") if importlib.util.find_spec("nvidia") else None
    for root in spec.submodule_search_locations if spec else ():
        lib = Path(root) / "lib"
        found = [p for p in sorted(lib.glob("libnvrtc.so.*")) if "alt" not in p.name]
        if found:
            for builtins in lib.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(builtins, ctypes.RTLD_GLOBAL)  # which NVRTC opens by its bare name
            return ctypes.CDLL(found[-1])
    return None


def compile_kernels(code, names, arch):
    """([Kernel], PTX) of `names` in `code` for "sm_90" and the like; RuntimeError with the compiler's words."""
    nvrtc, program = library(), ctypes.c_void_p()
    check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernels.cu", 0, None, None))
    for name in names:
        check(nvrtc.nvrtcAddNameExpression(program, name.encode()))
    options = [f"-arch={arch}".encode(), b"-std=c++17", b"-ftz=true", b"--device-as-default-execution-space",
               b"--ptxas-options=-v"]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    log = text(program, "ProgramLog")
    if failed:
        raise RuntimeError(log)
    kernels = [Kernel(symbol, int(registers), int(stack), int(stores) + int(loads), int(shared or 0))
               for symbol, stack, stores, loads, registers, shared in SUMMARY.findall(log)]
    ptx = text(program, "PTX")
    check(nvrtc.nvrtcDestroyProgram(ctypes.byref(program)))
    return kernels, ptx


def text(program, kind):
    size = ctypes.c_size_t()
    check(getattr(library(), f"nvrtcGet{kind}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    check(getattr(library(), f"nvrtcGet{kind}")(program, buffer))
    return buffer.value.decode()


def check(result):
    if result:
        raise RuntimeError(f"NVRTC error {result}")
