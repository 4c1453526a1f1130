"""Every barrier, wait and commit of every kernel is needed, and the emulator sees when one is missing.

Each is taken out in turn; in one of the three orders of lanes the kernel must fail or find something else.
"""

import numpy as np
import pytest
from emulator import emulator

from minivae.ops import cuda_conv, cuda_module, cuda_norm, cuda_ops, cuda_spectrum
from minivae.ops.geometry import Geometry


def draw(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def products(monkeypatch):
    """Tiles of many blocks, blocks of many tiles."""
    for multiprocessors, g, images, c in (132, Geometry(7, 6, 5, 2), 16, 8), (1, Geometry(5, 4, 5, 1), 17, 16):
        monkeypatch.setattr(cuda_module, "multiprocessors", multiprocessors)
        x, w = draw(images, g.height, g.width, c), draw(g.kernel, g.kernel, c, 12)
        dy = draw(images, g.out_height, g.out_width, 12)
        y, dx, dw, of_y, of_dx = dy * np.nan, x * np.nan, w * np.nan, draw(2, 12), draw(2, c)
        cuda_conv.conv(x, w, g, y, of_y)
        yield from (y, of_y)
        cuda_conv.conv_dx(dy, w, g, dx, of_dx)
        yield from (dx, of_dx)
        cuda_conv.conv_dw(x, dy, g, dw)
        yield dw


def norms(monkeypatch):
    for shape in (272, 36), (600, 5), (280, 12):
        x, dy, moments, one = draw(*shape), 1 - draw(*shape), draw(2, shape[1]) ** 2, draw(shape[1])
        dx, dgamma, dbeta = x * np.nan, one * np.nan, one * np.nan
        cuda_ops.batch_norm_dx(dy, x, moments, one, one, 0.2, True, dx, dgamma, dbeta)
        yield from (dx, dgamma, dbeta)
        cuda_ops.batch_moments(x, moments)
        yield moments


def gaussians(monkeypatch):
    for shape in (5, 8, 8, 3), (300, 2, 2, 2):
        n, c, both = shape[0], shape[3], (*shape[:3], 2 * shape[3])
        x_hat, rec, da, db = draw(*shape), draw(n), draw(*shape), draw(c)
        cuda_ops.tanh_gaussian(draw(*shape), draw(c), draw(*shape), draw(1), 0.25, x_hat, rec, da, db)
        yield from (x_hat, rec, da, db)
        da, db = draw(*both), draw(2 * c)
        cuda_ops.tanh_gaussian_pixel(draw(*both), draw(2 * c), draw(*shape), 0.25, x_hat, rec, da, db)
        yield from (x_hat, rec, da, db)


def spectra(monkeypatch):
    x, r, c = draw(3, 40, 36), draw(40, 40), draw(36, 36)
    y = x * np.nan
    cuda_ops.mix_columns(x, c, y)
    yield y
    cuda_ops.mix_rows(r, x, y)
    yield y
    for n, size in (5, 192), (300, 7):
        f, log_scale, b, rec = draw(n, size), draw(n, size), draw(size), draw(n)
        df, dlog_scale, db = f * np.nan, f * np.nan, b * np.nan
        cuda_ops.student(f, log_scale, b, 8, 0.25, rec, df, dlog_scale, db)
        yield from (rec, df, dlog_scale, db)
        cuda_ops.bias_tanh_dx(f, np.tanh(log_scale), df, db)
        yield from (df, db)


def steps(monkeypatch):
    t, history = np.array([4]), np.zeros((3, 2))
    for n in (300, 64):
        cuda_ops.record(draw(n), draw(n), t, history)
        yield from (t, history)


EXERCISES = [(cuda_conv.TENSOR, products), (cuda_norm.NORM, norms), (cuda_ops.GAUSSIAN, gaussians),
             (cuda_spectrum.SPECTRUM, spectra), (cuda_ops.STEP, steps)]


def file_of(source, line):
    """The file that has this line of the source's code, whose first line comes before all files."""
    end = 1
    for file in ("device.h", *source.files):
        end += len((cuda_module.KERNELS / file).read_text().splitlines())
        if line <= end:
            return file


SITES = {}  # (file, line of the code, text): the exercises that run it; several sources have device.h and columns.cu
for source, exercise in EXERCISES:
    for line, text in emulator.barriers(source.code(np.float32)):
        SITES.setdefault((file_of(source, line), line, text), []).append(exercise)


def run(exercise, order, line=0):
    with pytest.MonkeyPatch.context() as monkeypatch, emulator.lane_order(order), emulator.without(line):
        cuda_module.use(np, emulator.RawModule)  # which makes new scratch, without what a broken run left there
        return [a.copy() for a in exercise(monkeypatch)]


@pytest.fixture(scope="module")
def right():
    """What every exercise finds in order 0."""
    if emulator.WHY_NOT:
        pytest.skip(emulator.WHY_NOT)
    return {exercise: run(exercise, 0) for _, exercise in EXERCISES}


def is_caught(exercise, line, right):
    for order in emulator.ORDERS:
        try:
            found = run(exercise, order, line)
        except emulator.EmulatorError:
            return True
        if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(found, right, strict=True)):
            return True
    return False


@pytest.mark.parametrize("site", SITES, ids=lambda site: f"{site[0]}-{site[1]}-{site[2][:25]}")
def test_a_missing_barrier_is_seen(right, site):
    assert any(is_caught(exercise, site[1], right[exercise]) for exercise in SITES[site])


@pytest.mark.parametrize("exercise", [e for _, e in EXERCISES])
def test_nothing_missing_is_not_seen(right, exercise):
    assert not is_caught(exercise, 0, right[exercise])
