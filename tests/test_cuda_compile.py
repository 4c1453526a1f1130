"""Every kernel through NVIDIA's compiler for every generation of cards: it compiles, and keeps its values in registers.

The ordinary run compiles all kernels for the reference card, one of each source for the others, and with -m long all
for all.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import gpu_model
import nvrtc
import pytest
import sass

from minivae.ops import cuda_conv, cuda_norm, cuda_ops, cuda_spectrum

FIRST, REFERENCE = "sm_75", "sm_90"
OTHERS = [FIRST, "sm_80", "sm_86", "sm_89", "sm_100", "sm_120"]
BOTH = ["float32", "float64"]
SOURCES = {"tensor products": (cuda_conv.TENSOR, ["float32"]), "products": (cuda_conv.SINGLE, ["float32"]),
           "double products": (cuda_conv.DOUBLE, ["float64"]), "norm": (cuda_norm.NORM, BOTH),
           "gaussian": (cuda_ops.GAUSSIAN, BOTH), "spectrum": (cuda_spectrum.SPECTRUM, BOTH),
           "step": (cuda_ops.STEP, BOTH)}


def compile_all(archs, names):
    """{(arch, source, dtype): Compiled}, on all cores; names(source) says which kernels."""
    if not nvrtc.library():
        pytest.skip("compiling CUDA needs the nvidia-cuda-nvrtc wheel, which there is for Linux")
    jobs = [(arch, title, dtype) for arch in archs for title, (_, dtypes) in SOURCES.items() for dtype in dtypes
            if arch != FIRST or title != "tensor products"]  # which run from sm_80 on

    def work(job):
        arch, title, dtype = job
        source = SOURCES[title][0]
        return nvrtc.compile_kernels(source.code(dtype), names(source), arch)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(jobs, pool.map(work, jobs), strict=True))


@pytest.fixture(scope="module")
def compiled():
    return (compile_all([REFERENCE], lambda source: source.names)
            | compile_all(OTHERS, lambda source: source.names[-1:]))


@pytest.fixture(scope="module")
def compiled_in_full():
    return compile_all(OTHERS, lambda source: source.names)


def registers_only(found):
    for job, compiled in found.items():
        assert compiled.kernels, job
        for kernel in compiled.kernels:
            assert kernel.stack == kernel.spilled == 0, (job, kernel)


def test_all_values_stay_in_registers(compiled):
    registers_only(compiled)
    for title, (source, dtypes) in SOURCES.items():
        kernels = compiled[REFERENCE, title, dtypes[0]].kernels
        assert len(kernels) == len(source.names), title


@pytest.mark.long
def test_all_values_stay_in_registers_on_all_cards(compiled_in_full):
    registers_only(compiled_in_full)


@pytest.mark.parametrize("title, dtype, tiles", [
    ("tensor products", "float32", (cuda_conv.LARGE, cuda_conv.MEDIUM, cuda_conv.SCALAR, cuda_conv.WIDE,
                                     cuda_conv.NARROW)),
    ("products", "float32", (cuda_conv.MEDIUM, cuda_conv.SCALAR, cuda_conv.NARROW)),
    ("double products", "float64", (cuda_conv.MEDIUM_DOUBLE, cuda_conv.SCALAR, cuda_conv.NARROW))])
def test_as_many_blocks_fit_a_multiprocessor_as_cuda_conv_counts_on(compiled, title, dtype, tiles):
    """It has 65536 registers, and the system takes a KB of shared memory for each block."""
    for tile in tiles:
        names = {cuda_conv._name(op, title == "tensor products", tile) for op in (*cuda_conv.OPERATIONS, "CONV_DX_ALL")}
        mine = [kernel for kernel in compiled[REFERENCE, title, dtype].kernels if kernel.name in names]
        assert mine, tile
        for kernel in mine:
            assert tile.blocks * cuda_conv.THREADS * -(-kernel.registers // 8) * 8 <= 65536, kernel
            assert kernel.shared + 1024 <= cuda_conv.OTHER_SHARED_BYTES, kernel


@pytest.mark.parametrize("kilobytes, blocks", [
    (228, (2, 3, 3, 3)), (164, (1, 2, 3, 2)), (100, (1, 1, 2, 1)), (64, (1, 1, 1, 1))], ids=["90", "80", "86", "75"])
def test_blocks_of_each_tile_by_the_shared_memory_of_a_card(kilobytes, blocks):
    tiles = cuda_conv.LARGE, cuda_conv.MEDIUM, cuda_conv.SCALAR, cuda_conv.NARROW
    assert tuple(cuda_conv._blocks("CONV_DX", 4, tile, kilobytes * 1024) for tile in tiles) == blocks


def test_tensor_products_use_tensor_cores(compiled):
    """Each kernel, and no other source."""
    right_instructions(compiled)


@pytest.mark.long
def test_tensor_products_use_tensor_cores_on_all_cards(compiled_in_full):
    right_instructions(compiled_in_full)


def right_instructions(found):
    for (arch, title, dtype), compiled in found.items():
        entries = compiled.ptx.split(".entry")[1:]
        assert len(entries) == len(compiled.kernels) > 0
        for entry in entries:
            assert ("mma.sync.aligned.m16n8k8" in entry) == (title == "tensor products"), (arch, title, dtype)
            assert ("cp.async" in entry) == ("products" in title and arch != FIRST), (arch, title, dtype)


@pytest.fixture(scope="module")
def read(compiled, tmp_path_factory):
    """read(reader, source, dtype): {kernel: what reader, of sass.py, finds in it} on the reference card."""
    if not sass.disassembler():
        pytest.skip("machine code is read by the nvidia-cuda-nvdisasm wheel, which there is for Linux")

    def read(reader, title, dtype="float32"):
        found = compiled[REFERENCE, title, dtype]
        by_symbol = reader(found.cubin, tmp_path_factory.mktemp("sass"))
        return {kernel.name: by_symbol[kernel.symbol] for kernel in found.kernels}

    return read


@pytest.mark.parametrize("title", SOURCES)
def test_each_kernel_waits_for_the_launch_ahead(read, title):
    """Before its first access to global memory; and none reads as if nobody else could write what it reads."""
    for dtype in SOURCES[title][1]:
        for name, code in read(sass.instructions, title, dtype).items():
            waits = sass.places(code, "ACQBULK")
            assert waits and waits[0] < sass.places(code, "LD|LDG|LDGSTS|ST|STG|ATOM|ATOMG|RED|REDG")[0], name
            assert len(sass.places(code, "PREEXIT")) == 1, name
            assert not any("CONSTANT" in instruction for instruction in code), name


def test_instructions_of_a_unit(read):
    """The innermost loop of each product takes as many as gpu_model.py counts on, give or take a compiler's tenth."""
    found = read(sass.loops, "tensor products")
    for op, tiles in gpu_model.INSTRUCTIONS.items():
        for title, expected in tiles.items():
            tile = getattr(cuda_conv, title)
            mmas = tile.warp_rows // 16 * tile.warp_columns // 8 * cuda_conv.UNIT_BYTES // 32
            inner = min((loop for loop in found[cuda_conv._name(op, True, tile)] if sass.count(loop, "HMMA")), key=len)
            assert sass.count(inner, "HMMA") == mmas, (op, title)
            assert len(inner) == pytest.approx(expected, rel=0.1), (op, title)
    assert len(max(read(sass.loops, "spectrum")["mix"], key=len)) == pytest.approx(gpu_model.MIX, rel=0.1)


def test_loads_of_the_last_block_are_on_their_way_at_once(read):
    """One behind the other, they would take longer than the rest of the kernel."""
    for name, found in read(sass.loops, "tensor products").items():
        if name.startswith(("product<CONV,", "product<CONV_DX,")):  # those that merge moments
            assert max(map(sass.loads_in_flight, found)) >= 20, name
    for name, least in (("batch_norm_sums<1>", 6), ("batch_norm_sums<4>", 6)):
        assert max(map(sass.loads_in_flight, read(sass.loops, "norm")[name])) >= least, name


def test_a_mistake_is_told():
    if not nvrtc.library():
        pytest.skip("compiling CUDA needs the nvidia-cuda-nvrtc wheel, which there is for Linux")
    with pytest.raises(RuntimeError, match="identifier \"oops\" is undefined"):
        nvrtc.compile_kernels("__global__ void f() { oops(); }", ["f"], REFERENCE)
