"""What `python run.py gradcheck` does, for both kinds of KL, every kind of sigma, training and test mode.

Every gradient of the definition (ops/plain.py) is held to finite differences, and those of the fast operations to the
definition's.
"""

from collections import namedtuple

import numpy as np

from minivae.gradcheck import TOLERANCE, directional, elements
from minivae.layers import Conv2D, Conv2DTranspose
from minivae.ops import plain
from minivae.ops.geometry import Geometry
from minivae.parameters import Parameters
from minivae.sigmas import FITTED_SIGMAS
from minivae.vae import VAE, Widths

FAST_TOLERANCE = 1e-9  # of the fast operations, relative to the definition; right ones come out below 1e-13
SMALL = Widths((4, 5, 6), 7, (8, 6, 5))

Case = namedtuple("Case", "shape batch widths kl sigma train classes", defaults=[0])
Row = namedtuple("Row", "name f array grad")  # f() is the scalar that grad (d f / d array) belongs to
REFERENCE = Case((32, 32, 3), 4, Widths(), "sample", 1.0, True)
MANY_PIECES = REFERENCE._replace(batch=130)  # the fast operations cut it into several pieces each
SMALL_CASES = [Case((24, 8, 3), 5, SMALL, kl, sigma, train)  # 3 x 1 pixels at the innermost
               for sigma in (1.0, 0.3, *FITTED_SIGMAS) for kl in ("sample", "analytic") for train in (True, False)]
SMALL_CASES += [SMALL_CASES[0]._replace(classes=3, sigma=sigma) for sigma in (1.0, "spectrum")]


def model_rows(ops, case, latent=10, dtype=np.float64):
    """The rows of a model on a fixed batch; backward comes to the lowest row first, to x last.

    Vectors of parameters and moving statistics start where gradients are dull (1, 0, 0), so they are moved off it.
    """
    rng = np.random.default_rng(0)
    vae = VAE(case.shape, latent, ops, dtype, 0, case.kl, case.widths, case.sigma, case.classes)
    for p in vae.params.trained + vae.params.state:
        if len(p.shape) == 1 or p.grad is None:
            p.value += ops.xp.asarray(rng.uniform(-0.3, 0.3, p.shape))
    x = ops.xp.asarray(rng.uniform(-1, 1, (case.batch, *case.shape)), dtype)
    eps = ops.xp.asarray(rng.standard_normal((case.batch, latent)), dtype)
    labels = ops.xp.asarray(np.arange(case.batch) % max(case.classes, 1), np.int32)

    def loss():
        rec, kl = vae.forward(x, eps, case.train, labels)
        return float((rec + kl).mean())

    loss()
    dx = vae.backward(want_dx=True).copy()
    z = vae.posterior.z.copy()
    rows = [Row("x", loss, x, dx)]
    rows += [Row(p.name, loss, p.value, p.grad.copy()) for p in vae.params.trained]

    def rec_of_z():
        return float(vae.rec(z, x, case.train, labels).mean())

    rec_of_z()
    dz = vae.rec_dz(want_dw=False)
    first_of_generator = next(i for i, row in enumerate(rows) if row.name.startswith("gen"))
    rows.insert(first_of_generator, Row("z", rec_of_z, z, dz))
    return rows


def odd_rows(ops):
    """The rows of both convolutions between 7 x 5 and 4 x 3 pixels: a model's images have sides that 8 divides."""
    rng = np.random.default_rng(0)
    rows = []
    for layer_class, kernel, size in ((Conv2D, 3, (7, 5)), (Conv2D, 5, (7, 5)), (Conv2DTranspose, 5, (4, 3))):
        params = Parameters(ops, np.float64)
        name = f"{layer_class.__name__} {kernel}x{kernel}"
        layer = layer_class(params, name, Geometry(7, 5, kernel, stride=2), 36, 33)
        params.allocate()
        x = ops.xp.asarray(rng.standard_normal((2, *size, 36)))
        dy = ops.xp.asarray(rng.standard_normal(layer.forward(x).shape))

        def f(layer=layer, x=x, dy=dy):
            return float((layer.forward(x) * dy).sum())

        dx = layer.backward(dy)
        rows += [Row(f"{name} x", f, x, dx), Row(f"{name} w", f, layer.w.value, layer.w.grad)]
    return rows


def check(title, rows, fast_rows, to_host, table=False, differences=True):
    """Print a line, and the table of all rows if asked or if one fails; True if all hold.

    differences=False takes no finite differences: it compares the fast operations with the definition alone.
    """
    rng = np.random.default_rng(1)
    loss = rows[0].f()
    distance = abs(fast_rows[0].f() - loss) / max(abs(loss), 1e-12)
    largest = np.array((0, distance))
    wrong = None  # the lowest row that finite differences refute
    unlike = None if distance < FAST_TOLERANCE else "the loss itself"  # what the fast operations find otherwise
    lines = [f"{'':<22}{'shape':<19}{'analytic':>16}{'numeric':>16}{'error':>10}{'fast':>10}",
             f"{'the loss itself':<41}{loss:16.8g}{distance:36.1e}{'  FAILS' if unlike else ''}"]
    for row, fast in zip(rows, fast_rows, strict=True):
        analytic, numeric, error = directional(*row[1:], rng) if differences else (np.nan, np.nan, 0)
        distance = np.linalg.norm(to_host(fast.grad) - row.grad) / max(np.linalg.norm(row.grad), 1e-12)
        largest = np.maximum(largest, (error, distance))
        fails = not (error < TOLERANCE and distance < FAST_TOLERANCE)
        lines.append(f"{row.name:<22}{str(row.array.shape):<19}{analytic:16.8g}{numeric:16.8g}{error:10.1e}"
                     f"{distance:10.1e}{'  FAILS' if fails else ''}")
        if not error < TOLERANCE:
            wrong = row
        elif fails:
            unlike = row.name
    print(f"{title}: {len(rows)} gradients, largest error {largest[0]:.1e}, fast operations {largest[1]:.1e}")
    if table or wrong or unlike:
        print(*lines, "", sep="\n")
    if wrong:
        print(f"Look first at {wrong.name}, the lowest row that fails: the rows above inherit its error.")
        for index, analytic, numeric in elements(*wrong[1:], rng):
            print(f"{str(index):<41}{analytic:16.8g}{numeric:16.8g}")
    elif unlike:
        print("No gradient is refuted by finite differences, but the fast operations and the definition disagree: look "
              f"first at {unlike}.")
    return not (wrong or unlike)


def run(fast, definition=plain):
    """Check everything, up to the first check that fails, and print it; True if all gradients of both hold."""

    def both(title, rows_of, *arguments, **options):
        return check(title, rows_of(definition, *arguments), rows_of(fast, *arguments), fast.to_host, **options)

    def results():
        yield both("The reference's model", model_rows, REFERENCE, table=True)
        for case in SMALL_CASES:
            mode = "training" if case.train else "test"
            labels = ", with labels" if case.classes else ""
            yield both(f"sigma {case.sigma}, kl {case.kl}, {mode} mode{labels}", model_rows, case)
        yield both("convolutions of odd sizes", odd_rows)
        yield both("fast operations on 130 images", model_rows, MANY_PIECES, differences=False)

    good = all(results())
    verdict = "every gradient agrees" if good else "FAILED; what follows this check has not been checked"
    print(f"\n{verdict} (tolerance {TOLERANCE:g}, of the fast operations {FAST_TOLERANCE:g})")
    return good
