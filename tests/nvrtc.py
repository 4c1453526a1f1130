"""CUDA C compiled as CuPy compiles it, by the nvidia-cuda-nvrtc wheel: no GPU, driver or CuPy needed."""

import ctypes
import importlib.util
import re
from collections import namedtuple
from functools import cache
from pathlib import Path

# name: None if it was not asked for; symbol: its name in machine code; bytes of stack, spilled registers, shared memory
Kernel = namedtuple("Kernel", "name symbol registers stack spilled shared")
Compiled = namedtuple("Compiled", "kernels ptx cubin")
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
    """Compiled, of `names` in `code`, for "sm_90" and the like; RuntimeError with the compiler's words."""
    nvrtc, program = library(), ctypes.c_void_p()
    check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernels.cu", 0, None, None))
    for name in names:
        check(nvrtc.nvrtcAddNameExpression(program, name.encode()))
    options = [f"-arch={arch}".encode(), b"-std=c++17", b"-ftz=true", b"--device-as-default-execution-space",
               b"--ptxas-options=-v"]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    log = output(program, "ProgramLog").decode()
    if failed:
        raise RuntimeError(log)
    symbols = {}
    for name in names:
        symbol = ctypes.c_char_p()
        check(nvrtc.nvrtcGetLoweredName(program, name.encode(), ctypes.byref(symbol)))
        symbols[symbol.value.decode()] = name
    kernels = [Kernel(symbols.get(symbol), symbol, int(registers), int(stack), int(stores) + int(loads),
                      int(shared or 0)) for symbol, stack, stores, loads, registers, shared in SUMMARY.findall(log)]
    compiled = Compiled(kernels, output(program, "PTX").decode(), output(program, "CUBIN"))
    check(nvrtc.nvrtcDestroyProgram(ctypes.byref(program)))
    return compiled


def output(program, kind):
    size = ctypes.c_size_t()
    check(getattr(library(), f"nvrtcGet{kind}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    check(getattr(library(), f"nvrtcGet{kind}")(program, buffer))
    return buffer.raw if kind == "CUBIN" else buffer.value


def check(result):
    if result:
        raise RuntimeError(f"NVRTC error {result}")
