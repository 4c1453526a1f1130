"""Gradients against central finite differences, in float64.

For f of an array p, g = df/dp, a random unit d:   g . d  =  (f(p + h d) - f(p - h d)) / (2 h) + O(h^2)

One direction costs two forward passes whatever the size of p, and an error in any element of g moves g . d unless d is
orthogonal to it, which a random d never is. The error is measured against |g| / sqrt(size), the usual size of g . d, so
that a d that happens to lie across g raises no alarm. The model's noise eps must be frozen: fresh noise would make f
another function. checks.py applies this to every gradient of minivae.

What it cannot see: a forward and a backward that are wrong together, initial weights, Adam, the noise. For those the
tests have TensorFlow's numbers, densities that are known exactly, and the moments of every random draw.
"""

import numpy as np

TOLERANCE = 5e-6  # relative; right gradients come out below 5e-7, wrong ones at 1e-3 or more
STEP = 1e-6


def difference(f, array, direction):
    """(f(p + h d) - f(p - h d)) / (2 h) for the array p, which f reads; it is put back.

    h = 1e-6 n^(1/4) for a unit d of n elements: the more elements share a step, the less each moves its leaky ReLU
    towards the kink and the less f changes against its rounding, so a longer step is both allowed and wanted.
    """
    h = STEP * np.count_nonzero(direction) ** 0.25
    old = array.copy()
    array[...] = old + h * direction
    high = f()
    array[...] = old - h * direction
    low = f()
    array[...] = old
    return (high - low) / (2 * h)


def directional(f, array, grad, rng):
    """(analytic, numeric, relative error) of df along a random direction of `array`."""
    direction = rng.standard_normal(array.shape)
    direction /= np.linalg.norm(direction)
    analytic = float(np.vdot(grad, direction))
    numeric = difference(f, array, direction)
    usual = np.linalg.norm(grad) / array.size**0.5
    return analytic, numeric, abs(analytic - numeric) / max(abs(analytic), abs(numeric), usual, 1e-12)


def elements(f, array, grad, rng, count=10):
    """[(index, analytic, numeric)] of up to `count` random elements, the worst first: where a failure is."""
    found = []
    for flat in rng.choice(array.size, min(count, array.size), replace=False):
        direction = np.zeros(array.shape)
        direction.flat[flat] = 1
        index = tuple(int(i) for i in np.unravel_index(flat, array.shape))
        found.append((index, float(grad[index]), difference(f, array, direction)))
    return sorted(found, key=lambda row: -abs(row[1] - row[2]))
