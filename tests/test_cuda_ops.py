"""Each operation's kernels against plain.py in float64, at ragged sizes that take several blocks, tiles and rounds.

They run on the emulator in three orders of lanes and between guard pages; with -m gpu on the GPU.
"""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from emulator import emulator
from scipy.fft import dct

from minivae.ops import (
    HALF_RANGE,
    VAR_FLOOR,
    cuda_columns,
    cuda_module,
    cuda_ops,
    own_sums,
    philox,
    plain,
    plain_sigmas,
)

TOLERANCE = {np.float32: 3e-6, np.float64: 1e-12}  # relative to an array's largest value


@pytest.fixture(params=[np.float32, np.float64], ids=lambda t: t.__name__)
def dtype(request):
    return request.param


@pytest.fixture
def draw(rng, dtype):
    """draw(*shape): standard normals."""
    return lambda *shape: rng.standard_normal(shape).astype(dtype)


@pytest.fixture
def draw_moments(rng, dtype):
    """draw_moments(c): means and variances (2, c)."""
    return lambda c: np.stack([rng.standard_normal(c), rng.uniform(0.5, 2, c)]).astype(dtype)


@pytest.fixture
def new(dtype):
    """new(*shape): an array whose old contents must not matter."""
    return lambda *shape: np.full(shape, np.nan, dtype)


@pytest.fixture
def agree(to_device):
    """agree(NAME, *args): plain.NAME and cuda_ops.NAME on copies of args leave the same in every array of them.

    cuda_ops.NAME has been called with other values before, whose partial sums in scratch must not count again.
    """

    def agree(name, *args, tolerance=None):
        def copies(put, factor=1):
            return [put(factor * a if is_float(a) else a) if isinstance(a, np.ndarray) else a for a in args]

        getattr(cuda_ops, name)(*copies(to_device, 1.5))
        found = copies(to_device)
        getattr(cuda_ops, name)(*found)
        expected = copies(exact)
        getattr(plain, name)(*expected)
        found = [cuda_module.to_host(a) if isinstance(e, np.ndarray) else a
                 for a, e in zip(found, expected, strict=True)]
        for i, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
            if isinstance(mine, np.ndarray):
                close(mine, theirs, f"{name}, argument {i}", tolerance)
        return found

    return agree


def is_float(value):
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def exact(array):
    """A copy in float64, in which plain.py's own rounding does not count."""
    return array.astype(np.float64) if is_float(array) else array.copy()


def close(mine, theirs, what, tolerance=None):
    tolerance = tolerance or TOLERANCE.get(mine.dtype.type, 0)
    np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max(initial=0),
                               err_msg=what)


SHAPES = [(7, 10), (3, 5, 4, 3), (272, 4), (9, 40), (17, 4, 4, 36), (280, 5), (300, 33), (1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_moments(agree, draw, new, shape):
    x = 3 + draw(*shape)
    agree("batch_moments", x, new(2, shape[-1]))


def test_moments_of_a_large_mean_in_float32(agree, rng):
    x = (1e4 + rng.standard_normal((600, 3))).astype(np.float32)
    _, moments = agree("batch_moments", x, np.empty((2, 3), np.float32))
    np.testing.assert_allclose(moments[1], x.astype(np.float64).var(0), rtol=1e-3)


@pytest.mark.parametrize("moving", [True, False])
@pytest.mark.parametrize("slope", [0.2, 1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm(agree, draw, draw_moments, new, shape, slope, moving):
    c = shape[-1]
    moments, gamma, beta = draw_moments(c), draw(c), draw(c)
    agree("batch_norm", draw(*shape), moments, gamma, beta, slope, new(*shape), draw(2, c) if moving else None, 0.99)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("slope", [0.2, 1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm_dx(agree, draw, draw_moments, new, shape, slope, train):
    c = shape[-1]
    x, dy, moments, gamma, beta = draw(*shape), draw(*shape), draw_moments(c), draw(c), draw(c)
    agree("batch_norm_dx", dy, x, moments, gamma, beta, slope, train, new(*shape), new(c), new(c))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm_dx_of_a_shard(agree, draw, draw_moments, new, shape, train):
    """dgamma and dbeta are the shard's sums; dx needs those of the whole batch, here three times as long."""
    c = shape[-1]
    x, dy, moments, gamma, beta = draw(*shape), draw(*shape), draw_moments(c), draw(c), draw(c)
    agree("batch_norm_dx", dy, x, moments, gamma, beta, 0.2, train, new(*shape), new(c), new(c),
          lambda dgamma, dbeta, rows: (2 * dgamma, dbeta - dgamma, 3 * rows))


@pytest.mark.parametrize("whole", [own_sums, lambda dgamma, dbeta, rows: (2 * dgamma, dbeta, 3 * rows)],
                         ids=["all", "shard"])
@pytest.mark.parametrize("shape", [(272, 36), (9, 40)], ids=str)
def test_batch_norm_dx_in_place(to_device, draw, draw_moments, new, shape, whole):
    dy = draw(*shape)
    rest = draw(*shape), draw_moments(shape[1]), draw(shape[1]), draw(shape[1])  # x, moments, gamma, beta
    sums = new(shape[1]), new(shape[1])  # dgamma, dbeta
    expected = exact(dy)
    plain.batch_norm_dx(expected, *map(exact, rest), 0.2, True, expected, *map(exact, sums), whole)
    found = to_device(dy)
    cuda_ops.batch_norm_dx(found, *map(to_device, rest), 0.2, True, found, *map(to_device, sums), whole)
    close(cuda_module.to_host(found), expected, "dx")


@pytest.mark.parametrize("shape", [(600, 33), (2100, 4)], ids=str)
def test_batch_norm_with_many_rows_for_each_thread(agree, draw, draw_moments, new, monkeypatch, shape):
    monkeypatch.setattr(cuda_columns, "BLOCKS", 4)
    c = shape[1]
    x, moments, gamma, beta = draw(*shape), draw_moments(c), draw(c), draw(c)
    agree("batch_moments", x, new(2, c))
    agree("batch_norm", x, moments, gamma, beta, 0.2, new(*shape), draw(2, c), 0.99)
    agree("batch_norm_dx", draw(*shape), x, moments, gamma, beta, 0.2, True, new(*shape), new(c), new(c))


def test_a_zero_before_the_leak_has_slope_one(agree, dtype):
    """A channel that is constant, as a border can be, has u = beta = 0: both sides must take the same branch."""
    x, one = np.ones((4, 1), dtype), np.ones(1, dtype)
    moments = np.array([[1], [0]], dtype)
    agree("batch_norm_dx", x, x, moments, one, 0 * one, 0.2, False, x * np.nan, one * np.nan, one * np.nan)


def test_moving_average(agree, draw):
    agree("moving_average", draw(2, 5), draw(2, 5), 0.99)
    agree("moving_average", draw(300), draw(300), 0.99)


@pytest.mark.parametrize("analytic", [True, False])
@pytest.mark.parametrize("shape", [(1, 2), (40, 10), (3, 33)], ids=str)
def test_latent(agree, draw, new, shape, analytic):
    _, s, eps, _, z, var, _ = agree("latent", draw(*shape), 3 * draw(*shape), draw(*shape), analytic, new(*shape),
                                    new(*shape), new(shape[0]))
    agree("latent_dx", draw(*shape), draw(*shape), s, eps, analytic, 0.3, z, var, new(*shape), new(*shape))


@pytest.mark.parametrize("n, size, classes", [(1, 1, 1), (5, 10, 7), (64, 3, 10)])
def test_append_label(agree, rng, draw, new, n, size, classes):
    labels = rng.integers(0, classes, n).astype(np.int32)
    labels[0] = classes - 1
    agree("append_label", draw(n, size), labels, new(n, size + classes))
    agree("append_label_dx", draw(n, size + classes), new(n, size))


def test_extreme_variances(agree, dtype):
    s = np.array([[-1e4, -100, -20, 0, 20, 100, 1e4]], dtype)
    one, new = np.ones_like(s), np.full_like(s, np.nan)
    _, _, _, _, z, var, _ = agree("latent", one, s, one, False, new, new, np.full(1, np.nan, dtype))
    agree("latent_dx", one, one, s, one, False, 0.1, z, var, new, new)


def test_a_small_softplus_keeps_its_digits(agree, dtype):
    """ln(1 + e^s) by its formula would lose them: 1 + e^s is rounded to a unit of 1."""
    s = np.linspace(-20, -8, 13, dtype=dtype).reshape(1, -1)
    *_, var, _ = agree("latent", s, s, s, False, s * np.nan, s * np.nan, np.full(1, np.nan, dtype))
    np.testing.assert_allclose(var, np.log1p(np.exp(s.astype(np.float64))) + VAR_FLOOR, rtol=TOLERANCE[dtype])


IMAGES = [(5, 8, 8, 3), (1, 8, 8, 1), (2, 24, 40, 3), (300, 2, 2, 2), (2, 3, 3, 3)]


def test_bias_tanh(agree, draw, new):
    agree("bias_tanh", draw(3, 8, 8, 3), draw(3), new(3, 8, 8, 3))


@pytest.mark.parametrize("log_sigma", [0, -0.7])
@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_tanh_gaussian(agree, draw, new, dtype, shape, log_sigma):
    n, c = shape[0], shape[-1]
    agree("tanh_gaussian", draw(*shape), draw(c), draw(*shape), np.full(1, log_sigma, dtype), 0.25, new(*shape), new(n),
          new(*shape), new(c))


@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_tanh_gaussian_pixel(agree, draw, new, shape):
    n, c, both = shape[0], shape[-1], (*shape[:3], 2 * shape[-1])
    agree("tanh_gaussian_pixel", draw(*both), draw(2 * c), draw(*shape), 0.25, new(*shape), new(n), new(*both),
          new(2 * c))


def test_images_of_which_each_thread_takes_several_values(agree, draw, new, dtype, monkeypatch):
    monkeypatch.setattr(cuda_ops, "BLOCKS", 16)
    n, *_, c = shape = 2, 24, 40, 3
    both = *shape[:3], 2 * c
    agree("tanh_gaussian", draw(*shape), draw(c), draw(*shape), np.full(1, 0.3, dtype), 0.25, new(*shape), new(n),
          new(*shape), new(c))
    agree("tanh_gaussian_pixel", draw(*both), draw(2 * c), draw(*shape), 0.25, new(*shape), new(n), new(*both),
          new(2 * c))


def test_saturated_images(agree, dtype):
    a = np.array([[0, 0, 0, 1e30, -1e30, -1e4, 0, 1e4]], dtype).reshape(1, 1, 1, 8)
    x, new = np.full((1, 1, 1, 4), 0.5, dtype), np.full(8, np.nan, dtype)
    found = agree("tanh_gaussian_pixel", a, np.zeros(8, dtype), x, 1, x * np.nan, new[:1], a * np.nan, new)
    assert all(np.isfinite(v).all() for v in found if isinstance(v, np.ndarray))


def test_sigma(agree, draw, new, dtype):
    for n in (1, 300):
        rec = np.abs(draw(n))
        agree("log_sigma_dx", rec, draw(1), 48, 0.25, new(1))
        agree("fit_sigma", rec, 48, new(1))
    agree("fit_sigma", 0 * rec, 48, new(1))  # the floor
    agree("fit_sigma", np.nan * rec, 48, new(1))


@pytest.mark.parametrize("shape", [(3, 8, 8, 3), (300, 5), (40, 36)], ids=str)
def test_bias_tanh_dx(agree, draw, new, shape):
    agree("bias_tanh_dx", draw(*shape), np.tanh(draw(*shape)), new(*shape), new(shape[-1]))


def test_subtract(agree, draw, new):
    agree("subtract", draw(5, 60), draw(5, 60), new(5, 60))


@pytest.mark.parametrize("shape", [(3, 8, 24), (2, 33, 40), (1, 70, 7)], ids=str)
def test_mixes(agree, draw, new, shape):
    _, height, width = shape
    agree("mix_columns", draw(*shape), draw(width, width), new(*shape))
    agree("mix_rows", draw(height, height), draw(*shape), new(*shape))


def test_a_transform_keeps_what_tf32_would_lose(to_device, rng):
    """ln p(x) to a thousandth of a nat, where pixels vary by 50 grey levels and most coefficients by a third of one."""
    smooth = 0.4 * np.sin(np.arange(96) / 96 + rng.uniform(0, 6, (2, 32, 1))) + 0.003 * rng.standard_normal((2, 32, 96))
    c = dct(np.eye(96), axis=0, norm="ortho").T
    f = smooth @ c
    scale = np.sqrt((f**2).mean((0, 1)))
    x, c, y = (to_device(a.astype(np.float32)) for a in (smooth, c, smooth))

    def nats_lost():
        found = cuda_module.to_host(y).astype(np.float64)
        return abs((found**2 / scale**2).sum() - (f**2 / scale**2).sum()) / 2

    cuda_ops.mix_columns(x, c, y)
    assert nats_lost() < 1e-3
    cuda_ops.dense(x.reshape(64, 96), c, y.reshape(64, 96))
    assert nats_lost() > 1 or not cuda_module.tensor_cores(np.float32)


@pytest.mark.parametrize("shape", [(5, 192), (1, 7), (70, 5), (2, 1100)], ids=str)
def test_student(agree, draw, new, shape):
    n, size = shape
    agree("student", draw(*shape), draw(*shape), draw(size), 8, 0.25, new(n), new(*shape), new(*shape), new(size))


@pytest.mark.parametrize("n, bands, size", [(3, 6, 192), (70, 5, 33)])
def test_log_energy(agree, draw, new, monkeypatch, n, bands, size):
    monkeypatch.setattr(cuda_module, "precision", "fp32")
    f, pool, energy = draw(n, size), draw(bands, size) ** 2, draw(n, bands)
    agree("log_energy", f, pool, new(n, bands))
    agree("log_energy_dx", draw(n, bands), f, pool, energy, new(n, size))


@pytest.mark.parametrize("size", [1, 7, 1028])
def test_add(agree, draw, size):
    agree("add", draw(size), draw(size))


@pytest.mark.parametrize("seed, stream, t", [(0, 1, 0), (2**64 - 1, 2, 2**40 + 5), (7, 4, 2**62)])
@pytest.mark.parametrize("count", [1, 6, 1029])
def test_normal(agree, new, seed, stream, t, count):
    agree("normal", seed, stream, np.array([t]), new(count))


@pytest.mark.parametrize("seed, stream, t", [(0, 5, 0), (2**64 - 1, 6, 2**40 + 5)])
@pytest.mark.parametrize("first", [0, 5 * 8 * 24 * 3])
def test_dequantize(agree, draw, dtype, seed, stream, t, first):
    """The same bits as NumPy's in the same dtype, for a whole batch and for a shard from its sixth image on."""
    x = draw(3, 8, 24, 3)
    *_, found, _ = agree("dequantize", seed, stream, np.array([t]), x, first)
    plain.dequantize(seed, stream, np.array([t]), x, first)
    np.testing.assert_array_equal(found, x)


WORDS = """
__global__ void words(unsigned long long seed, unsigned stream, unsigned long long step, unsigned* out) {
  reinterpret_cast<uint4*>(out)[threadIdx.x] = random_words(seed, stream, step, 4 * threadIdx.x);
}
"""


def test_random_words_are_philox_s(cuda):
    """The same bits as philox.words, by a kernel that the test adds to the source."""
    module = emulator.RawModule(cuda_ops.STEP.code(np.float32) + WORDS, name_expressions=["words"])
    for seed, stream, step in ((0, 0, 0), (2**64 - 1, 2**32 - 1, 2**64 - 1), (0x13198A2E243F6A88, 3, 2**33 + 1)):
        out = np.zeros(4 * 100, np.uint32)
        module.get_function("words")((1,), (100,), (np.uint64(seed), np.uint32(stream), np.uint64(step), out))
        np.testing.assert_array_equal(out, philox.words(seed, stream, step, 400))


@pytest.mark.parametrize("t, row", [(4, 1), (2**33 + 1, 0), (2**62, 1)])
@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 48, 3), (2, 2, 3)], ids=str)
def test_gather(agree, rng, new, shape, t, row):
    """Bit for bit: the division is the same. t mod 3 selects the row, also where t does not fit 32 bits."""
    images = rng.integers(0, 256, (20, *shape), np.uint8)
    images[3].flat[:2] = 0, 255
    index = np.array([[5, 6, 7], [3, 19, 0], [1, 1, 2]], np.int32)
    *_, x = agree("gather", images, index, np.array([t]), new(3, *shape))
    np.testing.assert_array_equal(x, images[index[row]].astype(x.dtype) / x.dtype.type(HALF_RANGE) - 1)


@pytest.mark.parametrize("t", [0, 4, 2**33 + 1, 2**62])
@pytest.mark.parametrize("n", [1, 64, 300])
def test_take_labels(agree, rng, n, t):
    agree("take_labels", rng.integers(0, 10, (3, n)).astype(np.int32), np.array([t]), np.full(n, -1, np.int32))


@pytest.mark.parametrize("size", [1, 6, 260, 2100])
def test_adam(agree, draw, dtype, size):
    state = draw(size), draw(size), draw(size), np.abs(draw(size))
    agree("adam", *state, np.array([1e-3], dtype), 0.5, 0.999, 1e-8)


@pytest.mark.parametrize("t", [0, 3, 1_000_000])
def test_adam_rate(agree, new, t):
    agree("adam_rate", np.array([1e-3]), np.array([t]), 0.5, 0.999, new(1))


def test_adam_strides_over_what_its_blocks_do_not_cover(agree, draw, dtype, monkeypatch):
    monkeypatch.setattr(cuda_module, "multiprocessors", 1)
    state = draw(5000), draw(5000), draw(5000), np.abs(draw(5000))
    agree("adam", *state, np.array([1e-3], dtype), 0.5, 0.999, 1e-8)


@pytest.mark.parametrize("n", [1, 64, 300])
def test_record(agree, draw, n):
    """The kernel adds in float64, whatever the losses' dtype."""
    t = np.array([2**33 + 4])
    history = np.zeros((3, 2))
    for _ in range(4):
        _, _, t, history = agree("record", np.abs(draw(n)), np.abs(draw(n)), t, history)


def test_scratch_is_made_once(to_device, draw, new):
    x, moments = to_device(draw(300, 4)), to_device(new(2, 4))
    cuda_ops.batch_moments(x, moments)
    before = len(cuda_module._scratch[None]._arrays)
    cuda_ops.batch_moments(x, moments)
    assert len(cuda_module._scratch[None]._arrays) == before


def test_the_modules_have_the_same_operations():
    """Names, arguments and, within cuda_ops.py, order: the fitted sigmas' come last."""

    def operations(module, *files):
        return {name: list(inspect.signature(f).parameters) for name, f in vars(module).items()
                if inspect.isfunction(f) and not name.startswith("_") and f.__module__.startswith(files)}

    mine = operations(cuda_ops, "minivae.ops.cuda_")
    definition = operations(plain, "minivae.ops.plain", "minivae.ops.host")
    del definition["col2im"]  # a step of conv_dx
    assert mine == definition
    written = operations(cuda_ops, "minivae.ops.cuda_ops")
    order = sorted(definition, key=lambda name: hasattr(plain_sigmas, name))
    assert list(written) == [name for name in order if name in written]


def quoted(text):
    return re.findall(r"^//   plain: (.*)$", text, re.MULTILINE)


def code_lines(text):
    return [line.split("  #")[0].strip() for line in text.splitlines()]


@pytest.mark.parametrize("file", sorted(cuda_module.KERNELS.glob("*.cu")), ids=lambda file: file.name)
def test_every_kernel_quotes_lines_that_stand_in_plain(file):
    text = file.read_text()
    definition = Path(plain.__file__).read_text() + Path(plain_sigmas.__file__).read_text()
    assert not set(quoted(text)) - set(code_lines(definition))
    for header in text.split("__global__")[:-1]:
        assert quoted(header), header[-300:]


WITHOUT_A_KERNEL = "im2col", "col2im", "_seen_through"  # parts of the products' kernel


def test_every_operation_is_quoted():
    quotes = {line for file in cuda_module.KERNELS.glob("*.cu") for line in quoted(file.read_text())}
    for name, f in vars(plain).items():
        if inspect.isfunction(f) and f.__module__.startswith(plain.__name__) and name not in WITHOUT_A_KERNEL:
            assert quotes.intersection(code_lines(inspect.getsource(f))), name
