"""Every barrier, wait and commit of every kernel is needed, and the emulator sees when one is missing.

Each is taken out in turn; in one of the three orders of lanes the kernel must fail or find something else.
"""

import numpy as np
import pytest
from emulator import emulator

from minivae.ops import cuda_conv, cuda_module, cuda_norm, cuda_ops
from minivae.ops.geometry import Geometry

DEVICE_H = len((cuda_module.KERNELS / "device.h").read_text().splitlines()) + 1  # the typedef of T comes before


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


def steps(monkeypatch):
    t, history = np.array([4]), np.zeros((3, 2))
    for n in (300, 64):
        cuda_ops.record(draw(n), draw(n), t, history)
        yield from (t, history)


EXERCISES = [(cuda_conv.TENSOR, products), (cuda_norm.NORM, norms), (cuda_ops.GAUSSIAN, gaussians),
             (cuda_ops.STEP, steps)]
SITES = {}  # (what, its line): the exercises that run it; lines of device.h are in every source
for source, exercise in EXERCISES:
    for line, text in emulator.barriers(source.code(np.float32)):
        where = "device.h" if line <= DEVICE_H else source.files[-1]
        SITES.setdefault((where, line, text), []).append(exercise)


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
