"""The products' kernels against plain.py: on the emulator in three orders of lanes, with -m gpu on the GPU."""

import itertools

import numpy as np
import pytest
from emulator import emulator

from minivae.ops import cuda_conv, cuda_module, plain
from minivae.ops.geometry import Geometry

PRECISIONS = {"tf32": (np.float32, 1e-3), "fp32": (np.float32, 2e-6), "float64": (np.float64, 1e-13)}
# images, geometry, channels of the big and the small side
RAGGED = [(3, Geometry(7, 5, 5, 2), 8, 12), (3, Geometry(7, 6, 3, 2), 3, 5), (9, Geometry(8, 7, 5, 2), 3, 36),
          (2, Geometry(9, 6, 5, 3), 1, 4), (5, Geometry(3, 4, 3, 1), 8, 36), (5, Geometry(1, 2, 5, 2), 4, 8),
          (2, Geometry(5, 3, 1, 2), 4, 4), (9, Geometry(6, 7, 5, 2), 2, 16), (1, Geometry(4, 4, 3, 1), 1, 1),
          (12, Geometry(7, 6, 7, 2), 3, 68)]
LARGE = [(12, Geometry(7, 6, 5, 2), 8, 68), (30, Geometry(5, 4, 3, 2), 68, 8)]  # of several LARGE tiles each way
REFERENCE = [(1, Geometry(32, 32, 3, 2), 3, 32), (2, Geometry(16, 16, 3, 2), 32, 64),
             (3, Geometry(8, 8, 3, 2), 64, 128), (1, Geometry(8, 8, 5, 2), 128, 512),
             (1, Geometry(16, 16, 5, 2), 64, 128), (1, Geometry(32, 32, 5, 2), 3, 64)]
DENSE = [(67, 35, 3), (64, 1024, 10), (3, 10, 8192), (67, 132, 68), (1, 1, 1), (129, 36, 64),
         (4200, 4, 8)]  # of more tiles than one block merges the moments of


def case_name(case):
    return "-".join(str(c) if isinstance(c, int) else f"{c.height}x{c.width}k{c.kernel}s{c.stride}" for c in case)


@pytest.fixture(autouse=True)
def default_precision():
    yield
    cuda_module.set_precision("tf32")


class Case:
    """Arrays of one shape on the device, and what plain.py makes of them in float64."""

    def __init__(self, to_device, rng, dtype, images, g, inputs, outputs):
        shapes = {"x": (images, g.height, g.width, inputs), "w": (g.kernel, g.kernel, inputs, outputs),
                  "dy": (images, g.out_height, g.out_width, outputs)}
        host = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
        self.to_device = to_device
        self.dtype = dtype
        self.g = g
        self.x, self.w, self.dy = (to_device(host[name]) for name in ("x", "w", "dy"))
        x, w, dy = (host[name].astype(np.float64) for name in ("x", "w", "dy"))
        y, dx, dw = np.empty(dy.shape), np.empty(x.shape), np.empty(w.shape)
        y_moments, dx_moments = np.empty((2, outputs)), np.empty((2, inputs))
        plain.conv(plain.im2col(x, g), w, g, y, y_moments)
        plain.conv_dx(dy, w, g, dx, dx_moments)
        plain.conv_dw(plain.im2col(x, g), dy, g, dw)
        self.expected = {"y": y, "y moments": y_moments, "dx": dx, "dx moments": dx_moments, "dw": dw}

    def run(self):
        found = {name: self.to_device(np.full(e.shape, np.nan, self.dtype)) for name, e in self.expected.items()}
        found["dx alone"] = self.to_device(np.full(self.expected["dx"].shape, np.nan, self.dtype))
        cols = cuda_conv.im2col(self.x, self.g, cuda_module.Buffers())
        cuda_conv.conv(cols, self.w, self.g, found["y"], found["y moments"])
        cuda_conv.conv_dx(self.dy, self.w, self.g, found["dx"], found["dx moments"])
        cuda_conv.conv_dx(self.dy, self.w, self.g, found["dx alone"])  # few channels: the other kernel
        cuda_conv.conv_dw(cols, self.dy, self.g, found["dw"])
        return {name: cuda_module.to_host(array) for name, array in found.items()}

    def check(self, found, tolerance):
        for name, array in found.items():
            close(array, self.expected[name.removesuffix(" alone")], tolerance, name)


def close(found, expected, tolerance, name=""):
    error, size = np.linalg.norm(found - expected), np.linalg.norm(expected)
    assert error <= tolerance * size + 1e-12, f"{name}: {error / size}"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("multiprocessors", [132, 1])  # many small shares of work, few large ones
@pytest.mark.parametrize("case", RAGGED, ids=case_name)
def test_convolutions(to_device, rng, monkeypatch, case, multiprocessors, precision):
    dtype, tolerance = PRECISIONS[precision]
    cuda_module.set_precision("tf32" if precision == "tf32" else "fp32")
    monkeypatch.setattr(cuda_module, "multiprocessors", multiprocessors)
    case = Case(to_device, rng, dtype, *case)
    case.check(case.run(), tolerance)


@pytest.mark.parametrize("case", LARGE, ids=case_name)
def test_large_tiles(to_device, rng, monkeypatch, case):
    monkeypatch.setattr(cuda_module, "multiprocessors", 1)
    case = Case(to_device, rng, np.float32, *case)
    case.check(case.run(), PRECISIONS["tf32"][1])


def runs():
    """(case, precision, multiprocessors) of the tests of convolutions and of dense products."""
    yield from itertools.product(RAGGED, PRECISIONS, (132, 1))
    yield from itertools.product(LARGE, ["tf32"], [1])
    yield from itertools.product([(images, cuda_conv.POINT, *widths) for images, *widths in DENSE], PRECISIONS, [132])


def test_every_kernel_has_a_case():
    """Among them are some of several tiles each way, and for every size of a tile some whose tiles are cut."""
    rows = {}
    columns = {}
    pieces = {}
    for (case, precision, multiprocessors), op, moments in itertools.product(
            runs(), ("CONV", "CONV_DX", "CONV_DW"), (True, False)):
        plan = cuda_conv._plan(op, np.dtype(PRECISIONS[precision][0]), case[1], case[0], *case[2:], True,
                               moments and op != "CONV_DW", precision == "tf32", multiprocessors, 228 * 1024)
        kernel = plan.source, plan.name
        tile = plan.source, plan.name.split(",", 1)[1]
        rows[kernel] = max(plan.row_tiles, rows.get(kernel, 0))
        columns[kernel] = max(plan.column_tiles, columns.get(kernel, 0))
        pieces[tile] = max(plan.units / (plan.row_tiles * plan.column_tiles * plan.share), pieces.get(tile, 0))
    sources = cuda_conv.TENSOR, cuda_conv.SINGLE, cuda_conv.DOUBLE
    assert rows.keys() == {(source, name) for source in sources for name in source.names}
    assert [kernel for kernel, count in rows.items() if count == 1] == []
    assert [kernel for kernel, count in columns.items() if count == 1 and "CONV_DX_ALL" not in kernel[1]] == []
    assert [tile for tile, count in pieces.items() if count <= 1] == []


@pytest.mark.parametrize("to_device", [2, pytest.param("gpu", marks=pytest.mark.gpu)], ids=str, indirect=True)
@pytest.mark.parametrize("precision", ["tf32", "fp32"])
@pytest.mark.parametrize("case", REFERENCE, ids=case_name)
def test_convolutions_of_the_reference(to_device, rng, monkeypatch, case, precision):
    """In one order of lanes: the same kernels meet the others in test_convolutions, at sizes that take less time."""
    cuda_module.set_precision(precision)
    case = Case(to_device, rng, np.float32, *case)
    case.check(case.run(), PRECISIONS[precision][1])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("images, inputs, outputs", DENSE)
def test_dense_products(to_device, rng, images, inputs, outputs, precision):
    dtype, tolerance = PRECISIONS[precision]
    cuda_module.set_precision("tf32" if precision == "tf32" else "fp32")
    x, w, dy = (rng.standard_normal(s).astype(dtype) for s in ((images, inputs), (inputs, outputs), (images, outputs)))
    y, dx, dw, moments = (to_device(np.full(s, np.nan, dtype)) for s in (dy.shape, x.shape, w.shape, (2, outputs)))
    cuda_conv.dense(to_device(x), to_device(w), y, moments)
    cuda_conv.dense_dx(to_device(dy), to_device(w), dx)
    cuda_conv.dense_dw(to_device(x), to_device(dy), dw)
    found = {"y": y, "dx": dx, "dw": dw, "mean": moments[0], "var": moments[1]}
    x, w, dy = (a.astype(np.float64) for a in (x, w, dy))
    y, dx, dw, moments = np.empty(dy.shape), np.empty(x.shape), np.empty(w.shape), np.empty((2, outputs))
    plain.dense(x, w, y, moments)
    plain.dense_dx(dy, w, dx)
    plain.dense_dw(x, dy, dw)
    for name, expected in {"y": y, "dx": dx, "dw": dw, "mean": moments[0], "var": moments[1]}.items():
        close(cuda_module.to_host(found[name]), expected, tolerance, name)


def test_tf32_has_no_bias(to_device, rng):
    """Sums of positive products, whose errors would add up: without TF32_PRODUCT they are 7e-4 too small."""
    x, w = (np.exp2(rng.uniform(0, 4, shape)).astype(np.float32) for shape in ((64, 256), (256, 64)))
    y = to_device(np.empty((64, 64), np.float32))
    cuda_conv.dense(to_device(x), to_device(w), y)
    exact = x.astype(np.float64) @ w.astype(np.float64)
    assert abs((cuda_module.to_host(y) / exact - 1).mean()) < 3e-5


def test_moments_of_a_large_mean(to_device, rng):
    """E[y^2] - E[y]^2 would lose every digit of the variance here."""
    cuda_module.set_precision("fp32")
    x = np.concatenate([rng.standard_normal((300, 4)), np.full((300, 1), 1e4)], 1).astype(np.float32)
    w = np.concatenate([np.eye(4), np.ones((1, 4))]).astype(np.float32)
    y, moments = to_device(np.empty((300, 4), np.float32)), to_device(np.empty((2, 4), np.float32))
    cuda_conv.dense(to_device(x), to_device(w), y, moments)
    y, moments = cuda_module.to_host(y).astype(np.float64), cuda_module.to_host(moments)
    np.testing.assert_allclose(moments[0], y.mean(0), rtol=1e-6)
    np.testing.assert_allclose(moments[1], y.var(0), rtol=1e-3)


@pytest.mark.parametrize("precision", ["tf32", "float64"])
def test_two_runs_give_the_same_bits(to_device, rng, precision):
    """Blocks come in another order each time, and with it which of them adds up a tile."""
    case = Case(to_device, rng, PRECISIONS[precision][0], 7, Geometry(12, 11, 5, 2), 16, 20)
    first = case.run()
    for order in emulator.ORDERS:
        with emulator.lane_order(order):
            for name, array in case.run().items():
                np.testing.assert_array_equal(array, first[name], err_msg=name)


@pytest.mark.parametrize("case", RAGGED, ids=case_name)
def test_the_three_convolutions_are_adjoint(to_device, rng, case):
    """<conv(x; w), dy> = <x, conv_dx(dy; w)> = <w, conv_dw(x, dy)>, in float64 through the kernels alone."""
    case = Case(to_device, rng, np.float64, *case)
    found = case.run()
    x, w, dy = (cuda_module.to_host(a) for a in (case.x, case.w, case.dy))
    product = np.vdot(found["y"], dy)
    for other in np.vdot(x, found["dx"]), np.vdot(x, found["dx alone"]), np.vdot(w, found["dw"]):
        assert other == pytest.approx(product, rel=1e-11, abs=1e-10)
