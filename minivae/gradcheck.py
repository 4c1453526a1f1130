"""Gradients against central finite differences, in float64.

For f of an array p, g = df/dp, a random unit d:   g . d  =  (f(p + h d) - f(p - h d)) / (2 h) + O(h^2)

One direction costs two forward passes whatever p's size, and an error in any element of g moves g . d unless d is
orthogonal to it, which a random d never is. The model's noise eps is frozen: fresh noise would make f another function.
The error is measured against |g| / sqrt(size), the usual size of g . d, so that a d that happens to lie across g does
not raise an alarm.
"""

import numpy as np

from minivae.ops import numpy_ops
from minivae.vae import VAE

TOLERANCE = 5e-6  # relative; right gradients come out below 5e-7, wrong ones at 1e-3 or more
STEP = 1e-6


def directional(f, array, grad, rng, ops=numpy_ops):
    """(analytic, numeric, relative error) of df along a random direction of `array`, which f reads; it is put back.

    array and grad may be on the device of `ops`; what is done with them here is done in NumPy.

    h = 1e-6 size^(1/4): the more elements share a step, the less each moves its leaky ReLU towards the kink and the
    less f changes against its rounding, so a longer step is both allowed and wanted.
    """
    old, grad = ops.to_host(array).copy(), ops.to_host(grad)
    direction = rng.standard_normal(array.shape)
    direction /= np.linalg.norm(direction)
    h = STEP * array.size**0.25
    array[...] = ops.xp.asarray(old + h * direction)
    high = f()
    array[...] = ops.xp.asarray(old - h * direction)
    low = f()
    array[...] = ops.xp.asarray(old)
    analytic, numeric = float(np.vdot(grad, direction)), (high - low) / (2 * h)
    usual = np.linalg.norm(grad) / array.size**0.5
    return analytic, numeric, abs(analytic - numeric) / max(abs(analytic), abs(numeric), usual, 1e-12)


def elements(f, array, grad, rng, count=10):
    """[(index, analytic, numeric)] of up to `count` random elements, the worst first: where a failure is."""
    found = []
    for flat in rng.choice(array.size, min(count, array.size), replace=False):
        index = tuple(int(i) for i in np.unravel_index(flat, array.shape))
        old = float(array[index])
        array[index] = old + STEP
        high = f()
        array[index] = old - STEP
        low = f()
        array[index] = old
        found.append((index, float(grad[index]), (high - low) / (2 * STEP)))
    return sorted(found, key=lambda row: -abs(row[1] - row[2]))


def model(ops, kl, shape=(32, 32, 3), latent=10, batch=4):
    """The reference's model in float64 with its loss L() on a fixed batch, and [(name, array, dL/d array)].

    gamma, beta and the bias start where their gradients are dull (1, 0, 0), so they are moved off at random.
    """
    rng = np.random.default_rng(0)
    vae = VAE(shape, latent, ops, np.float64, seed=0, kl=kl)
    for p in vae.params.trained:
        if len(p.shape) == 1:
            p.value += ops.xp.asarray(0.2 * rng.standard_normal(p.shape))
    x = ops.xp.asarray(rng.uniform(-1, 1, (batch, *shape)))
    eps = ops.xp.asarray(rng.standard_normal((batch, latent)))

    def loss():
        rec, kl = vae.forward(x, eps)
        return float((rec + kl).mean())

    loss()
    dx = vae.backward(want_dx=True) + (x - vae.likelihood.x_hat) / batch  # through q(z|x), and as the target
    return loss, [(p.name, p.value, p.grad.copy()) for p in vae.params.trained] + [("x", x, dx)]


def run(ops):
    """Print the table for both forms of the KL; True if every row holds."""
    rng, good = np.random.default_rng(1), True
    for kl in ("sample", "analytic"):
        loss, rows = model(ops, kl)
        print(f"\ndL/d along a random direction, float64, --kl {kl}")
        print(f"{'array':<17}{'shape':<19}{'analytic':>16}{'numeric':>16}{'relative error':>16}")
        for name, array, grad in rows:
            analytic, numeric, error = directional(loss, array, grad, rng, ops)
            verdict = "" if error < TOLERANCE else "  FAILS"
            print(f"{name:<17}{str(array.shape):<19}{analytic:16.8g}{numeric:16.8g}{error:16.1e}{verdict}")
            if verdict:
                good = False
                for index, a, n in elements(loss, array, grad, rng):
                    print(f"    {str(index):<32}{a:16.8g}{n:16.8g}")
    print("\nevery gradient agrees" if good else "\nFAILED", f"(tolerance {TOLERANCE:g})")
    return good
