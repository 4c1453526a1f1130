"""Images of house numbers of our own making, in the manner of SVHN: what trains when nothing can be downloaded.

A digit is strokes (lines and arcs) with random proportions. A bank holds, for each digit and many alphabets, the
distance of every point of its cell to its strokes. An image looks distances up through an affine map (size, slant,
rotation), for a centred digit and two neighbours that the frame cuts off, and turns them into ink of some thickness
and softness; colours, a shadow, plates, shading, texture and noise follow. All images of a part are made at once.
"""

import numpy as np

SIZE = 32
COUNTS = {"train": 20_000, "test": 5_000}
ALPHABETS = 64
CELL, MARGIN = 64, 0.4  # a bank cell: CELL x CELL points over [-MARGIN, 1 + MARGIN]^2, the digit in [0, 1]^2
PART = 1000  # images made at once: 1,000 x 1,024 pixels stay near the cache


def make(split, seed=0, count=None, progress=iter):
    """images (N, 32, 32, 3) uint8 and labels (N,) uint8 of "train" or "test"; the same seed, the same bytes.

    `progress` wraps the iterator over parts (a progress bar).
    """
    count = COUNTS[split] if count is None else count
    bank = _bank(np.random.default_rng([seed, 2]))
    images, labels = np.empty((count, SIZE, SIZE, 3), np.uint8), np.empty(count, np.uint8)
    for part in progress(range(0, count, PART)):
        rng = np.random.default_rng([seed, list(COUNTS).index(split), part])
        n = min(PART, count - part)
        images[part : part + n], labels[part : part + n] = _images(rng, bank, n)
    return images, labels


def _arc(cx, cy, rx, ry, start, stop, boxy, points=13):
    """Points of a superellipse from angle start to stop, in degrees, 0 to the right and 90 down."""
    t = np.radians(np.linspace(start, stop, points))
    c, s = np.cos(t), np.sin(t)
    return np.stack([cx + rx * np.sign(c) * np.abs(c) ** boxy, cy + ry * np.sign(s) * np.abs(s) ** boxy], -1)


def _strokes(digit, rng):
    """One drawing of a digit: a list of polylines (points, 2) in the unit square, y down."""
    boxy = rng.uniform(0.55, 1)
    waist = rng.uniform(0.44, 0.52)  # where the upper and the lower half of 2, 3, 5, 6, 8, 9 meet
    few = rng.random() < 0.5

    def line(*points):
        return np.array(points, float)

    if digit == 0:
        return [_arc(0.5, 0.5, rng.uniform(0.26, 0.34), 0.5, 0, 360, boxy, 21)]
    if digit == 1:
        flag = [line((0.52, 0), (rng.uniform(0.25, 0.4), rng.uniform(0.1, 0.25)))] if rng.random() < 0.7 else []
        base = [line((0.3, 1), (0.74, 1))] if rng.random() < 0.3 else []
        return [line((0.52, 0), (0.52, 1)), *flag, *base]
    if digit == 2:
        top = _arc(0.5, 0.28, 0.28, 0.28, 195, 395, boxy)
        return [np.concatenate([top, line((0.2, 1), (0.8, 1))])]
    if digit == 3:
        low = _arc(0.48, (1 + waist) / 2, 0.3, (1 - waist) / 2, 270, 505, boxy)
        if few and rng.random() < 0.5:
            return [np.concatenate([line((0.2, 0), (0.76, 0), (0.44, waist)), low])]
        return [np.concatenate([_arc(0.48, waist / 2, 0.27, waist / 2, 200, 450, boxy), low])]
    if digit == 4:
        bar = rng.uniform(0.6, 0.75)
        if few and rng.random() < 0.5:
            return [line((0.22, 0), (0.2, bar), (0.86, bar)), line((0.66, 0.2), (0.66, 1))]
        return [line((0.64, 1), (0.64, 0), (0.14, bar), (0.88, bar))]
    if digit == 5:
        bowl = _arc(0.47, (1 + waist - 0.08) / 2, 0.3, (1.08 - waist) / 2, 225, 510, boxy)
        return [np.concatenate([line((0.75, 0), (0.28, 0)), bowl])]
    if digit == 7:
        cross = [line((0.34, 0.5), (0.72, 0.5))] if rng.random() < 0.15 else []
        return [line((0.2, 0), (0.8, 0), (rng.uniform(0.3, 0.5), 1)), *cross]
    if digit == 8:
        return [_arc(0.5, waist / 2, 0.25, waist / 2, 0, 360, boxy),
                _arc(0.5, (1 + waist) / 2, 0.29, (1 - waist) / 2, 0, 360, boxy)]
    t = np.linspace(0, 1, 8)[:, None]  # 6, and 9 as its half turn
    loop = _arc(0.5, (1.4 * waist + 1) / 2 - 0.06, 0.28, 0.56 - 0.7 * waist, 0, 360, boxy)
    end = np.array([[rng.uniform(0.62, 0.76), rng.uniform(0, 0.08)]])
    stem = (1 - t) ** 2 * end + 2 * t * (1 - t) * [[0.24, rng.uniform(0.02, 0.2)]] + t**2 * [[0.22, 0.7]]
    return [loop, stem] if digit == 6 else [1 - loop, 1 - stem]


def _bank(rng):
    """Distances (10, ALPHABETS, CELL, CELL) float32 to the strokes, in units of the digit's height."""
    axis = np.linspace(-MARGIN, 1 + MARGIN, CELL, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 1, 2)
    bank = np.empty((10, ALPHABETS, CELL, CELL), np.float32)
    for alphabet in range(ALPHABETS):
        stress = np.array([rng.uniform(0.8, 1.15), 1], np.float32)  # a pen wider across than along, or the reverse
        for digit in range(10):
            lines = [line + rng.normal(0, 0.012, line.shape) for line in _strokes(digit, rng)]
            start = np.concatenate([line[:-1] for line in lines]).astype(np.float32)
            along = np.concatenate([line[1:] for line in lines]).astype(np.float32) - start
            to = points - start
            t = np.clip((to * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-9), 0, 1)
            away = np.square((to - t[..., None] * along) * stress).sum(-1)
            bank[digit, alphabet] = np.sqrt(away.min(1)).reshape(CELL, CELL)
    return bank


def _images(rng, bank, n):
    def uniform(low, high, channels=1):
        return rng.uniform(low, high, (n, 1, 1, channels)).astype(np.float32)

    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)[..., None] - (SIZE - 1) / 2
    labels = rng.integers(0, 10, (3, n))  # the centred digit, its left and its right neighbour
    distance = _distances(rng, bank, labels, x, y, uniform)
    soft = uniform(0.9, 2.3) ** 1.5  # pixels from paper to ink: focus and resolution
    ink = _ramp(distance / soft)
    shadow = np.roll(ink, (1, 1), (1, 2)) * uniform(0, 1) * (uniform(0, 1) < 0.4)

    grey = np.clip(0.45 + 0.2 * rng.standard_normal((n, 1, 1, 1)), 0.08, 0.92)
    paper = grey + rng.normal(0, 0.035, (n, 1, 1, 3)) + uniform(-0.07, 0.07) * np.array([1, 0, -1])
    contrast = np.clip(0.12 + rng.gamma(2.2, 0.1, (n, 1, 1, 1)), 0.14, 0.65)
    sign = np.where(rng.random((n, 1, 1, 1)) < 0.25 + 0.5 * (grey < 0.45), 1, -1)
    colour = grey + sign * contrast + rng.normal(0, 0.035, (n, 1, 1, 3))

    image = paper + _background(rng, x, y, soft, uniform, n)
    image = image - 0.5 * contrast * sign * shadow
    image = image + ink * (colour - image)
    image = image * (1 + uniform(-0.012, 0.012) * x + uniform(-0.012, 0.012) * y)  # light from a side
    noise = rng.standard_normal((n, SIZE + 1, SIZE, 3), np.float32)
    image = image + uniform(0, 0.01) * (noise[:, 1:] + noise[:, :-1])
    return (np.clip(image, 0.01, 0.99) * 255 + 0.5).astype(np.uint8), labels[0].astype(np.uint8)


def _distances(rng, bank, labels, x, y, uniform):
    """Pixels (n, 32, 32, 1) from the nearest digit's edge, negative inside the ink."""
    n = labels.shape[1]
    height, aspect = uniform(19, 28), uniform(0.72, 1.15)
    slant, turn = np.float32(0.1) * rng.standard_normal((2, n, 1, 1, 1), np.float32)
    pen = height * uniform(0.045, 0.105)
    step = height * aspect * uniform(0.72, 0.95)  # from one digit's middle to the next
    x = x - rng.normal(0, 0.8, (n, 1, 1, 1)).astype(np.float32)
    y = y - rng.normal(0, 0.8, (n, 1, 1, 1)).astype(np.float32)
    alphabet = rng.integers(0, ALPHABETS, n)[:, None, None]
    nearest = np.full((n, SIZE, SIZE), np.inf, np.float32)
    for digit, offset in zip(labels, (0, -1, 1), strict=True):
        u = x + turn * y - offset * step
        v = y - turn * x + offset * uniform(-1, 1)
        place = (u + slant * v) / (height * aspect), v / height
        place = [(w + 0.5 + MARGIN) / (1 + 2 * MARGIN) * (CELL - 1) for w in place]
        found = _look_up(bank, digit[:, None, None], alphabet, *(p[..., 0] for p in place))
        if offset:
            found[rng.random(n) < 0.35] = np.inf
        np.minimum(nearest, found, out=nearest)
    return nearest[..., None] * height - pen


def _look_up(bank, digit, alphabet, u, v):
    """bank[digit, alphabet] at column u and row v, bilinear; far away outside the cell."""
    outside = (u < 0) | (v < 0) | (u > CELL - 1.001) | (v > CELL - 1.001)
    u, v = np.clip(u, 0, CELL - 1.001), np.clip(v, 0, CELL - 1.001)
    i, j = v.astype(np.int32), u.astype(np.int32)
    v, u = v - i, u - j
    flat, at = bank.reshape(-1), ((digit * ALPHABETS + alphabet) * CELL + i) * CELL + j
    top = flat[at] * (1 - u) + flat[at + 1] * u
    low = flat[at + CELL] * (1 - u) + flat[at + CELL + 1] * u
    found = top * (1 - v) + low * v
    found[outside] = np.inf
    return found


def _background(rng, x, y, soft, uniform, n):
    """What lies behind the digits: a gradient, blotches, and in some images a plate's edge."""
    blotches = rng.standard_normal((n, 5, 5, 1), np.float32)
    grid = np.linspace(0, 3.999, SIZE)
    cell, t = grid.astype(int), (grid % 1).astype(np.float32)[:, None]
    blotches = blotches[:, cell] * (1 - t[:, None]) + blotches[:, cell + 1] * t[:, None]
    blotches = blotches[:, :, cell] * (1 - t) + blotches[:, :, cell + 1] * t
    along = np.where(rng.random((n, 1, 1, 1)) < 0.5, x, y) * np.where(rng.random((n, 1, 1, 1)) < 0.5, 1, -1)
    edge = _ramp((uniform(9, 20) - along + uniform(-0.1, 0.1) * (x + y)) / soft) * (uniform(0, 1) < 0.45)
    return uniform(-0.006, 0.006) * x + uniform(-0.006, 0.006) * y + uniform(0, 0.05) * blotches \
        + uniform(-0.3, 0.3, 3) * uniform(0, 1) * edge


def _ramp(d):
    """1 far inside (d < -1), 0 far outside, smooth between: the edge of a blurred shape."""
    t = np.clip(0.5 - 0.5 * d, 0, 1)
    return t * t * (3 - 2 * t)
