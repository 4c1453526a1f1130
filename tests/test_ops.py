"""The array operations: TensorFlow's numbers, a five-loop oracle, adjoints, and gradients of batch norm."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN
from scipy import stats

from minivae.ops import threads
from minivae.ops.geometry import Geometry

golden = np.load(GOLDEN / "ops.npz")
CASES = sorted({name.split("_")[0] for name in golden.files})
GEOMETRIES = [Geometry(8, 8, 3, 2), Geometry(7, 5, 3, 2), Geometry(5, 8, 5, 2), Geometry(9, 6, 5, 3),
              Geometry(4, 5, 3, 1), Geometry(3, 3, 5, 2), Geometry(1, 2, 5, 2)]


def empty(shape, dtype=np.float64):
    """An array whose old contents must not matter."""
    return np.full(shape, np.nan, dtype)


def conv(ops, x, w, g):
    y = empty((len(x), g.out_height, g.out_width, w.shape[3]))
    ops.conv(ops.im2col(x, g, ops.Buffers()), w, g, y)
    return y


def conv_dx(ops, dy, w, g):
    dx = empty((len(dy), g.height, g.width, w.shape[2]))
    ops.conv_dx(dy, w, g, dx)
    return dx


def conv_dw(ops, x, dy, w, g):
    dw = empty(w.shape)
    ops.conv_dw(ops.im2col(x, g, ops.Buffers()), dy, g, dw)
    return dw


@pytest.mark.parametrize("case", CASES)
def test_tensorflow_convolutions(ops, case):
    x, w, y, dy, dx, dw, stride = (golden[f"{case}_{name}"] for name in ("x", "w", "y", "dy", "dx", "dw", "stride"))
    big = x if case.startswith("conv") else y
    g = Geometry(big.shape[1], big.shape[2], w.shape[0], int(stride))
    if case.startswith("conv"):
        found = conv(ops, x, w, g), conv_dx(ops, dy, w, g), conv_dw(ops, x, dy, w, g)
    else:
        found = conv_dx(ops, x, w, g), conv(ops, dy, w, g), conv_dw(ops, dy, x, w, g)
    for name, mine, theirs in zip(("y", "dx", "dw"), found, (y, dx, dw), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-10, err_msg=name)


def test_all_golden_cases_are_there():
    assert sum(c.startswith("conv") for c in CASES) >= 6 and sum(c.startswith("tconv") for c in CASES) >= 6


@pytest.mark.parametrize("g", GEOMETRIES, ids=str)
def test_convolution_is_the_sum_it_says(ops, rng, g):
    """Five loops, padding by TensorFlow's formula written out once more."""
    x, w = rng.standard_normal((2, g.height, g.width, 3)), rng.standard_normal((g.kernel, g.kernel, 3, 4))

    def before(n):
        out = -(-n // g.stride)
        return max((out - 1) * g.stride + g.kernel - n, 0) // 2

    expected = np.zeros((2, -(-g.height // g.stride), -(-g.width // g.stride), 4))
    for i in range(expected.shape[1]):
        for j in range(expected.shape[2]):
            for a in range(g.kernel):
                for b in range(g.kernel):
                    u, v = i * g.stride - before(g.height) + a, j * g.stride - before(g.width) + b
                    if 0 <= u < g.height and 0 <= v < g.width:
                        for c in range(3):
                            expected[:, i, j] += x[:, u, v, c, None] * w[a, b, c]
    np.testing.assert_allclose(conv(ops, x, w, g), expected, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 7, 67])
@pytest.mark.parametrize("g", GEOMETRIES, ids=str)
def test_the_three_convolutions_are_adjoint(ops, rng, g, batch):
    """<conv(x; w), y> = <x, conv_dx(y; w)> = <w, conv_dw(x, y)>."""
    x, w = rng.standard_normal((batch, g.height, g.width, 2)), rng.standard_normal((g.kernel, g.kernel, 2, 5))
    y = rng.standard_normal((batch, g.out_height, g.out_width, 5))
    product = np.vdot(conv(ops, x, w, g), y)
    assert np.vdot(x, conv_dx(ops, y, w, g)) == pytest.approx(product, rel=1e-12, abs=1e-10)
    assert np.vdot(w, conv_dw(ops, x, y, w, g)) == pytest.approx(product, rel=1e-12, abs=1e-10)


@pytest.mark.parametrize("channels", [3, 512])
@pytest.mark.parametrize("g", GEOMETRIES, ids=str)
def test_a_second_call_with_other_data_keeps_nothing(ops, rng, g, channels):
    """Buffers live on between calls: padding must still read as zero, sums must not go on from the last call."""
    buffers, w = ops.Buffers(), rng.standard_normal((g.kernel, g.kernel, channels, 4))
    for _ in range(2):
        x = rng.standard_normal((3, g.height, g.width, channels))
        y = empty((3, g.out_height, g.out_width, 4))
        ops.conv(ops.im2col(x, g, buffers), w, g, y)
    np.testing.assert_array_equal(y, conv(ops, x, w, g))
    np.testing.assert_allclose(np.vdot(y, y), np.vdot(x, conv_dx(ops, y, w, g)), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dense_products(ops, rng, dtype):
    x, w, dy = (rng.integers(-8, 8, s).astype(dtype) for s in ((5, 7), (7, 3), (5, 3)))  # exact in float32
    y, dx, dw = empty((5, 3), dtype), empty((5, 7), dtype), empty((7, 3), dtype)
    ops.dense(x, w, y)
    ops.dense_dx(dy, w, dx)
    ops.dense_dw(x, dy, dw)
    for mine, expected in ((y, x @ w), (dx, dy @ w.T), (dw, x.T @ dy)):
        np.testing.assert_array_equal(mine, expected)
        assert mine.dtype == dtype


@pytest.mark.parametrize("shape", [(64, 10), (3, 5, 7, 1), (2, 3, 3, 3), (67, 4, 4, 48), (2, 2, 2, 4096)])
def test_moments(ops, rng, shape):
    x = 3 + rng.standard_normal(shape)
    moments = empty((2, shape[-1]))
    ops.batch_moments(x, moments)
    axes = tuple(range(len(shape) - 1))
    np.testing.assert_allclose(moments, [x.mean(axes), x.var(axes)], rtol=1e-12)


def test_moments_of_a_large_mean_in_float32(ops, rng):
    """E[x^2] - E[x]^2 would lose every digit of the variance here."""
    x = (1e4 + rng.standard_normal((4096, 3))).astype(np.float32)
    moments = empty((2, 3), np.float32)
    ops.batch_moments(x, moments)
    np.testing.assert_allclose(moments[1], x.astype(np.float64).var(0), rtol=1e-3)


@pytest.mark.parametrize("product", ["conv", "conv_dx", "dense"])
def test_a_product_gives_its_own_moments(ops, rng, product):
    g = Geometry(6, 5, 3, 2)
    big, small, moments = rng.standard_normal((4, 6, 5, 3)), rng.standard_normal((4, 3, 3, 2)), empty((2, 3))
    w = rng.standard_normal((3, 3, 3, 2))
    if product == "conv":
        y, moments = empty(small.shape), empty((2, 2))
        ops.conv(ops.im2col(big, g, ops.Buffers()), w, g, y, moments)
    elif product == "conv_dx":
        y = empty(big.shape)
        ops.conv_dx(small, w, g, y, moments)
    else:
        y = empty((72, 3))
        ops.dense(small.reshape(72, 1), w[0, 0, :, :1].T.copy(), y, moments)
    axes = tuple(range(y.ndim - 1))
    np.testing.assert_allclose(moments, [y.mean(axes), y.var(axes)], rtol=1e-10)


@pytest.mark.parametrize("shape", [(4, 3, 5, 3), (9, 6), (2, 2, 2, 4096)])
@pytest.mark.parametrize("slope", [0.2, 1])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_batch_norm_gradients(ops, rng, check, shape, slope, train, in_place):
    c = shape[-1]
    x, dy, y = rng.standard_normal(shape) + 1, rng.standard_normal(shape), empty(shape)
    gamma, beta = rng.standard_normal(c), rng.standard_normal(c)
    moments = np.stack([rng.standard_normal(c), rng.uniform(0.5, 2, c)])

    def f():
        if train:
            ops.batch_moments(x, moments)
        ops.batch_norm(x, moments, gamma, beta, slope, y)
        return np.vdot(y, dy)

    f()
    dgamma, dbeta = empty(c), empty(c)
    given = dy.copy()
    dx = given if in_place else empty(shape)
    ops.batch_norm_dx(given, x, moments, gamma, beta, slope, train, dx, dgamma, dbeta)
    if not in_place:
        np.testing.assert_array_equal(given, dy)
    check(f, {"x": (x, dx), "gamma": (gamma, dgamma), "beta": (beta, dbeta)})


@pytest.mark.parametrize("in_place", [True, False])
def test_shards_of_a_batch_have_its_gradients(ops, rng, in_place):
    """With the sums of all of them, dx of each shard is that of the whole batch, and their own sums add up to its."""
    x, dy = rng.standard_normal((2, 90, 5))
    gamma, beta = rng.standard_normal((2, 5))
    moments, dx, dgamma, dbeta = empty((2, 5)), empty((90, 5)), empty(5), empty(5)
    ops.batch_moments(x, moments)
    ops.batch_norm_dx(dy, x, moments, gamma, beta, 0.2, True, dx, dgamma, dbeta)
    found = []
    for rows in (slice(0, 20), slice(20, 90)):
        given, mine, of_gamma, of_beta = dy[rows].copy(), empty(x[rows].shape), empty(5), empty(5)
        mine = given if in_place else mine
        ops.batch_norm_dx(given, x[rows], moments, gamma, beta, 0.2, True, mine, of_gamma, of_beta,
                          lambda *sums: (dgamma, dbeta, 90))
        np.testing.assert_allclose(mine, dx[rows], rtol=1e-10, atol=1e-12)
        found.append((of_gamma, of_beta))
    np.testing.assert_allclose(np.sum(found, 0), [dgamma, dbeta], rtol=1e-10)


def test_batch_norm_by_hand(ops):
    """Two values per channel: n = -+1/sqrt(1 + 1e-3), leaky at 0.2."""
    x, y, moments = np.array([[1.0, -4.0], [3.0, -2.0]]), empty((2, 2)), empty((2, 2))
    ops.batch_moments(x, moments)
    np.testing.assert_array_equal(moments, [[2, -3], [1, 1]])
    ops.batch_norm(x, moments, np.array([1.0, 2.0]), np.array([0.0, 0.5]), 0.2, y)
    n = 1 / np.sqrt(1.001)
    np.testing.assert_allclose(y, [[-0.2 * n, 0.2 * (0.5 - 2 * n)], [n, 0.5 + 2 * n]], rtol=1e-14)


def test_moving_average_by_hand(ops):
    """decay 0.99 from mean 0, variance 1, and the biased variance: no Bessel factor."""
    moving = np.array([[0.0], [1.0]])
    ops.moving_average(moving, np.array([[2.0], [5.0]]), 0.99)
    np.testing.assert_allclose(moving, [[0.02], [1.04]], rtol=1e-14)
    ops.moving_average(moving, np.array([[2.0], [5.0]]), 0.99)
    np.testing.assert_allclose(moving, [[0.0398], [1.0796]], rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gather(ops, rng, dtype):
    """u8 / 255 * 2 - 1 of the row of index that t selects."""
    images = rng.integers(0, 256, (20, 4, 3, 3), np.uint8)
    images[3].flat[:2] = 0, 255
    index = np.array([[5, 6, 7], [3, 19, 0]], np.int32)
    x = empty((3, 4, 3, 3), dtype)
    ops.gather(images, index, np.array([5]), x)  # 5 mod 2 = 1
    np.testing.assert_allclose(x, images[[3, 19, 0]] / 255 * 2 - 1, atol=1e-7)
    assert x[0].flat[0] == -1 and x[0].flat[1] == 1


def test_dequantized_pixels_are_uniform_over_their_grey_level(ops):
    """What (seed, stream, t) say, and nothing else, decides the noise."""
    level = np.full((40, 10, 10, 3), 3 / 127.5 - 1)
    drawn = []
    for seed, stream, t in ((0, 5, 7), (0, 5, 7), (1, 5, 7), (0, 6, 7), (0, 5, 8)):
        drawn.append(level.copy())
        ops.dequantize(seed, stream, np.array([t]), drawn[-1])
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert all(np.isclose(drawn[0], other).mean() < 0.01 for other in drawn[2:])
    levels = (drawn[0] + 1) * 127.5
    assert stats.kstest(levels.ravel(), stats.uniform(2.5, 1).cdf).pvalue > 1e-3
    single = level.astype(np.float32)
    ops.dequantize(0, 5, np.array([7]), single)
    np.testing.assert_allclose(single, drawn[0], atol=2e-7)
    part = level[10:30].copy()
    ops.dequantize(0, 5, np.array([7]), part, level[:10].size)
    np.testing.assert_array_equal(part, drawn[0][10:30])


@pytest.mark.parametrize("n, size", [(3, 12), (20, 300)])
def test_student_gradients(ops, rng, check, n, size):
    f, log_scale = rng.standard_normal((2, n, size))
    b, rec = rng.standard_normal(size), empty(n)
    df, dlog_scale, db = empty(f.shape), empty(f.shape), empty(size)

    def loss():
        ops.student(f, log_scale, b, 8, 0.3, rec, df, dlog_scale, db)
        return 0.3 * rec.sum()

    loss()
    check(loss, {"f": (f, df.copy()), "log_scale": (log_scale, dlog_scale.copy()), "b": (b, db.copy())})


def test_a_student_of_many_degrees_is_a_gaussian(ops, rng):
    f, log_scale = rng.standard_normal((2, 4, 30))
    b, rec = rng.standard_normal(30), empty(4)
    ops.student(f, log_scale, b, 1e8, 1, rec, empty(f.shape), empty(f.shape), empty(30))
    expected = -stats.norm.logpdf(f, 0, np.exp(log_scale + b)).sum(1) - 15 * np.log(2 * np.pi)
    np.testing.assert_allclose(rec, expected, rtol=1e-4)


def test_log_energy_and_its_gradient(ops, rng, check):
    f, dy, energy, df = rng.standard_normal((4, 12)), rng.standard_normal((4, 3)), empty((4, 3)), empty((4, 12))
    pool = np.zeros((3, 12))
    pool[0, :2] = 1 / 2
    pool[1, 2:3] = 1
    pool[2, 3:] = 1 / 9
    f[0, :2] = 0
    ops.log_energy(f, pool, energy)
    means = np.stack([(f[:, part] ** 2).mean(1) for part in (slice(2), slice(2, 3), slice(3, None))], 1)
    np.testing.assert_allclose(energy, np.log(means + 1 / 127.5**2 / 12), rtol=1e-12)

    def loss():
        ops.log_energy(f, pool, energy)
        return np.vdot(energy, dy)

    loss()
    ops.log_energy_dx(dy, f, pool, energy, df)
    check(loss, {"f": (f, df)})


def test_tanh_and_its_gradient(ops, rng, check):
    a, b, dy = rng.standard_normal((4, 3, 5)), rng.standard_normal(5), rng.standard_normal((4, 3, 5))
    y, da, db = empty(a.shape), empty(a.shape), empty(5)

    def f():
        ops.bias_tanh(a, b, y)
        return np.vdot(y, dy)

    f()
    ops.bias_tanh_dx(dy, y, da, db)
    check(f, {"a": (a, da), "b": (b, db)})


def test_mixes_and_a_difference(ops, rng):
    r, c, x = rng.standard_normal((6, 6)), rng.standard_normal((9, 9)), rng.standard_normal((20, 6, 9))
    y = empty(x.shape)
    ops.mix_rows(r, x, y)
    np.testing.assert_allclose(y, np.einsum("hi,nik->nhk", r, x), rtol=1e-12, atol=1e-12)
    ops.mix_columns(x, c, y)
    np.testing.assert_allclose(y, np.einsum("nhi,ik->nhk", x, c), rtol=1e-12, atol=1e-12)
    error = empty(x.shape)
    ops.subtract(x, y, error)
    np.testing.assert_array_equal(error, x - y)
def test_labels(ops):
    """The row of the table that t selects, and each label's one-hot beside its code."""
    labels = np.zeros(3, np.int32)
    ops.take_labels(np.array([[0, 1, 2], [2, 0, 1]], np.int32), np.array([5]), labels)  # 5 mod 2 = 1
    np.testing.assert_array_equal(labels, [2, 0, 1])
    zy = empty((3, 5))
    ops.append_label(np.array([[1.5, 2], [3, 4], [5, 6]]), labels, zy)
    np.testing.assert_array_equal(zy, [[1.5, 2, 0, 0, 1], [3, 4, 1, 0, 0], [5, 6, 0, 1, 0]])
    dz = empty((3, 2))
    ops.append_label_dx(zy, dz)
    np.testing.assert_array_equal(dz, [[1.5, 2], [3, 4], [5, 6]])


def test_record(ops):
    t, history = np.array([4]), np.zeros((3, 2))
    ops.record(np.array([1.0, 3.0]), np.array([10.0, 20.0]), t, history)
    np.testing.assert_array_equal(history, [[0, 0], [2, 15], [0, 0]])
    assert t == 5


def test_every_task_is_done_once_and_no_error_is_lost():
    done = []
    threads.parallel(lambda task: (time.sleep(1e-4), done.append(task)), range(50))
    assert sorted(done) == list(range(50))
    for bad in range(6):

        def work(task, bad=bad):
            time.sleep(1e-3)
            if task == bad:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            threads.parallel(work, range(6))


STEP = """
import hashlib
import numpy as np
from minivae.adam import Adam
from minivae.ops import numpy_ops, threads
from minivae.vae import VAE

vae, rng = VAE((32, 32, 3), 10, numpy_ops), np.random.default_rng(0)
adam = Adam(vae.params)
for _ in range(2):
    vae.forward(rng.uniform(-1, 1, (70, 32, 32, 3)).astype(np.float32), rng.normal(size=(70, 10)).astype(np.float32))
    vae.backward()
    adam.update()
print(threads.cores(), hashlib.sha256(vae.params.values).hexdigest())
"""


IMPORT = """
import threading
from threadpoolctl import threadpool_info
import numpy
before = [lib["num_threads"] for lib in threadpool_info()], threading.active_count()
import minivae.vae, minivae.checks, minivae.ops.numpy_ops, minivae.training.loop, minivae.density.card
after = [lib["num_threads"] for lib in threadpool_info()][: len(before[0])], threading.active_count()
assert before == after, (before, after)
"""


def test_importing_starts_no_thread_and_leaves_blas_alone():
    subprocess.run([sys.executable, "-c", IMPORT], cwd=Path(__file__).parent.parent, check=True)


def test_the_number_of_cores_does_not_change_a_bit():
    outputs = [subprocess.run([sys.executable, "-c", STEP], env=os.environ | {"OMP_NUM_THREADS": cores}, text=True,
                              cwd=Path(__file__).parent.parent, capture_output=True, check=True).stdout.split()
               for cores in ("1", "2")]
    assert outputs[0][0] == "1" and outputs[0][1] == outputs[1][1], outputs
