"""A launch that may begin while the one ahead of it on its stream still runs: cuLaunchKernelEx, which CuPy lacks.

The kernel itself waits for the one ahead before it touches an array (wait_for_launch_ahead in device.h); its way to the
multiprocessors is done by then. In a graph that is being recorded it becomes a programmatic edge. Source: CUDA C++
Programming Guide, "Programmatic Dependent Launch and Synchronization".
"""

import numpy as np


def launch(function, stream, grid, block, args, shared_mem):
    """What function(grid, block, args, shared_mem=shared_mem) of a cupy.RawKernel does on this stream, but early."""
    from cuda.bindings import driver

    early = driver.CUlaunchAttribute()
    early.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    early.value.programmaticStreamSerializationAllowed = 1
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = (*grid, 1, 1)[:3]
    config.blockDimX, config.blockDimY, config.blockDimZ = (*block, 1, 1)[:3]
    config.sharedMemBytes = shared_mem
    config.hStream = stream.ptr
    config.attrs = [early]
    config.numAttrs = 1
    values, types = zip(*(_value_and_type(a) for a in args), strict=True)
    (error,) = driver.cuLaunchKernelEx(config, function.kernel.ptr, (values, types), 0)
    if error:
        raise RuntimeError(f"cuLaunchKernelEx: {error.name}")


def _value_and_type(arg):
    """What cuda.bindings takes for an argument: a NumPy scalar, or the address of an array on the GPU."""
    if isinstance(arg, np.generic):
        return arg.item(), np.ctypeslib.as_ctypes_type(arg.dtype)
    return arg.data.ptr, np.ctypeslib.as_ctypes_type(np.uint64)
