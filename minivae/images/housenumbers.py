"""Images of house numbers of our own making, in the manner of SVHN: what trains when nothing can be downloaded.

A digit is strokes (lines and arcs) with random proportions. A bank holds, for each alphabet and digit, the distance of
every point of its cell to its strokes. An image looks distances up through an affine map (size, slant, rotation), for a
centred digit and the neighbours that the frame cuts off, and turns them into ink on a plate, with colours, a shadow,
light and noise; a camera of few pixels then takes the picture, which is scaled up to 32x32. Sizes, colours and
sharpness are set to SVHN's statistics (benchmarks/housenumbers.py), contrast somewhat higher and neighbours fewer, so
that a short training learns digits.
"""

from functools import lru_cache

import numpy as np
from tqdm import tqdm

SIZE = 32
COUNTS = {"train": 20_000, "test": 5_000}
ALPHABETS = 48
CELL = 64  # a bank cell is CELL x CELL points over [-MARGIN, 1 + MARGIN]^2, with the digit in [0, 1]^2
MARGIN = 0.4
CHUNK_IMAGES = 100  # made at a time: their pixels stay in the processor's cache
FREQUENCY = np.array([7, 19, 14, 12, 10, 9, 8, 8, 7, 6]) / 100  # of 0 ... 9 on houses: numbers begin at 1
LENGTHS = np.array([14, 50, 28, 7, 1]) / 100  # of numbers of 1 ... 5 digits, counted by digit
WIDTH = np.array([0.6, 0.3, 0.6, 0.6, 0.7, 0.6, 0.6, 0.6, 0.6, 0.6], np.float32)  # of a digit in its unit square
WARM, GREEN = np.array([[1, 0, -1], [-0.5, 1, -0.5]], np.float32)  # the two directions of colour at one brightness


def make(split, seed=0, count=None):
    """images (N, 32, 32, 3) uint8 and labels (N,) uint8 of "train" or "test"; N is `count`, or COUNTS[split].

    The same seed gives the same bytes on the same machine. A terminal shows a progress bar.
    """
    count = COUNTS[split] if count is None else count
    bank = _bank(seed)
    cameras = _cameras()
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    labels = np.empty(count, np.uint8)
    for start in tqdm(range(0, count, CHUNK_IMAGES), f"making the {split} images", disable=None):
        draw = Draw([seed, list(COUNTS).index(split), start], min(CHUNK_IMAGES, count - start))
        rows = slice(start, start + draw.n)
        images[rows], labels[rows] = _images(draw, bank, cameras)
    return images, labels


class Draw:
    """One random value for each of n images, float32 (n, 1, 1, 1), ready to be spread over their pixels."""

    def __init__(self, seed, n):
        self.rng = np.random.default_rng(seed)
        self.n = n
        self.shape = (n, 1, 1, 1)

    def uniform(self, low, high):
        return self.rng.uniform(low, high, self.shape).astype(np.float32)

    def normal(self, sd):
        return sd * self.rng.standard_normal(self.shape, np.float32)

    def laplace(self, sd):
        return self.rng.laplace(0, sd / 2**0.5, self.shape).astype(np.float32)

    def chance(self, p):
        """1 with probability p, else 0."""
        return (self.rng.random(self.shape) < p).astype(np.float32)


def _arc(cx, cy, rx, ry, start, stop, boxy, points=13):
    """Points of a superellipse from angle start to stop, in degrees, 0 to the right and 90 down."""
    t = np.radians(np.linspace(start, stop, points))
    direction = np.stack([np.cos(t), np.sin(t)], -1)
    return [cx, cy] + np.sign(direction) * [rx, ry] * np.abs(direction) ** boxy


def _strokes(digit, rng, boxy):
    """One drawing of a digit: a list of polylines (points, 2) in the unit square, y down."""
    waist = rng.uniform(0.44, 0.5)  # where the upper and the lower half of 3, 5, 8 meet
    rare = rng.random() < 0.2

    def line(*points):
        return np.array(points, float)

    if digit == 0:
        return [_arc(0.5, 0.5, rng.uniform(0.26, 0.32), 0.5, 0, 360, boxy, 21)]
    if digit == 1:
        flag = [line((0.5, 0), (rng.uniform(0.28, 0.38), rng.uniform(0.08, 0.22)))] if rng.random() < 0.65 else []
        return [line((0.5, 0), (0.5, 1)), *flag, *([line((0.32, 1), (0.68, 1))] if rare else [])]
    if digit == 2:
        return [np.concatenate([_arc(0.5, 0.28, 0.28, 0.28, 195, 395, boxy), line((0.2, 1), (0.8, 1))])]
    if digit == 3:
        low = _arc(0.48, (1 + waist) / 2, 0.3, (1 - waist) / 2, 270, 505, boxy)
        if rare:
            return [np.concatenate([line((0.2, 0), (0.76, 0), (0.44, waist)), low])]
        return [np.concatenate([_arc(0.48, waist / 2, 0.27, waist / 2, 200, 450, boxy), low])]
    if digit == 4:
        bar = rng.uniform(0.62, 0.75)
        if rare:
            return [line((0.22, 0), (0.2, bar), (0.86, bar)), line((0.66, 0.2), (0.66, 1))]
        return [line((0.64, 1), (0.64, 0), (0.16, bar), (0.86, bar))]
    if digit == 5:
        bowl = _arc(0.47, (1 + waist - 0.08) / 2, 0.3, (1.08 - waist) / 2, 225, 510, boxy)
        return [np.concatenate([line((0.75, 0), (0.28, 0)), bowl])]
    if digit == 7:
        return [line((0.2, 0), (0.8, 0), (rng.uniform(0.34, 0.48), 1))]
    if digit == 8:
        return [_arc(0.5, waist / 2, 0.25, waist / 2, 0, 360, boxy),
                _arc(0.5, (1 + waist) / 2, 0.29, (1 - waist) / 2, 0, 360, boxy)]
    t = np.linspace(0, 1, 8)[:, None]  # 6, and 9 as its half turn
    top = rng.uniform(0.38, 0.48)
    loop = _arc(0.5, (1 + top) / 2, 0.28, (1 - top) / 2, 0, 360, boxy)
    end = np.array([[rng.uniform(0.62, 0.76), rng.uniform(0, 0.08)]])
    stem = (1 - t) ** 2 * end + 2 * t * (1 - t) * [[0.24, rng.uniform(0.02, 0.2)]] + t**2 * [[0.22, 0.7]]
    return [loop, stem] if digit == 6 else [1 - loop, 1 - stem]


@lru_cache(1)
def _bank(seed):
    """Distances (ALPHABETS, 10, CELL, CELL) float32 to the strokes, in units of the digit's height."""
    rng = np.random.default_rng([seed, 2])
    axis = np.linspace(-MARGIN, 1 + MARGIN, CELL, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis)).reshape(2, 1, -1)
    bank = np.empty((ALPHABETS, 10, CELL, CELL), np.float32)
    for alphabet in bank:
        boxy = rng.uniform(0.6, 1)
        stress = np.array([rng.uniform(0.6, 1.05), 1], np.float32).reshape(2, 1, 1)  # below 1 uprights are thick
        for digit, cell in enumerate(alphabet):
            lines = [line + rng.normal(0, 0.008, line.shape) for line in _strokes(digit, rng, boxy)]
            start = np.concatenate([line[:-1] for line in lines]).T[..., None].astype(np.float32)  # (2, segments, 1)
            along = np.concatenate([np.diff(line, axis=0) for line in lines]).T[..., None].astype(np.float32)
            first = np.concatenate([np.arange(len(line) - 1) == 0 for line in lines])[:, None]
            last = np.roll(first, -1)  # a line ends where the next begins
            to = points - start
            square = (along**2).sum(0) + 1e-9
            t = (to * along).sum(0) / square
            beyond = first * np.minimum(t, 0) + last * np.maximum(t - 1, 0)  # an end, where the pen is cut off blunt
            away = np.square((to - np.clip(t, 0, 1) * along) * stress).sum(0) + 8 * square * beyond**2
            cell[...] = np.sqrt(away.min(0)).reshape(CELL, CELL)
    return bank


def _cameras():
    """(12, 32, 32) float32: what a line of the scene becomes when few pixels see it and a cubic scales them up."""
    scene = np.arange(SIZE) + 0.5
    cameras = []
    for pitch in np.geomspace(1, 3.2, 12):  # scene points from pixel to pixel
        pixel = np.arange(-2.5, SIZE / pitch + 3) * pitch
        see = np.exp(-0.5 * ((pixel[:, None] - scene) / (0.5 * pitch)) ** 2) + 1e-30
        d = np.abs(scene[:, None] - pixel) / pitch
        cubic = np.where(d < 1, 1 - 2.5 * d**2 + 1.5 * d**3, np.where(d < 2, 2 - 4 * d + 2.5 * d**2 - 0.5 * d**3, 0))
        cameras.append(cubic @ (see / see.sum(1, keepdims=True)))
    return np.array(cameras, np.float32)


def _images(draw, bank, cameras):
    """images (n, 32, 32, 3) and labels (n,), uint8."""
    rng = draw.rng
    n = draw.n
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)[..., None] - (SIZE - 1) / 2
    labels = rng.choice(10, (3, n), p=FREQUENCY)  # the centred digit, its left and its right neighbour
    ink = _ramp(_distances(draw, bank, labels, x, y) / 1.1)

    level = np.clip(0.49 + draw.normal(0.21), 0.1, 0.9)
    warm, green = draw.laplace(0.045) - 0.012, draw.laplace(0.016) - 0.004
    paper = level + warm * WARM + green * GREEN
    sign = 2 * draw.chance(1 / (1 + np.exp((level - 0.38) / 0.05))) - 1  # light ink on dark paper
    contrast = np.clip(0.28 + rng.gamma(2, 0.11, level.shape), 0.28, 0.85).astype(np.float32)
    colour = np.clip(level + sign * contrast, 0.06, 1)
    colour = colour + (warm + draw.laplace(0.04)) * WARM + (green + draw.laplace(0.016) - 0.01) * GREEN

    image = _behind(draw, paper, x, y)
    image -= 0.5 * contrast * np.roll(ink, (1, 1), (1, 2)) * draw.uniform(0, 1) * draw.chance(0.3)  # a shadow
    image += ink * (colour - image)
    image *= 1 + draw.uniform(-0.01, 0.01) * x + draw.uniform(-0.01, 0.01) * y  # light from a side
    image += draw.uniform(0, 0.04) * rng.standard_normal(image.shape, np.float32)
    image += draw.normal(0.15) * WARM * np.gradient(image, axis=2)  # a lens that bends red less than blue
    camera = cameras[rng.integers(0, len(cameras), n)]
    image = (camera @ image.reshape(n, SIZE, -1)).reshape(image.shape)
    image = camera[:, None] @ image
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), labels[0].astype(np.uint8)


def _distances(draw, bank, labels, x, y):
    """Pixels (n, 32, 32, 1) from the nearest digit's edge, negative inside the ink."""
    height = draw.uniform(19, 25)
    aspect = draw.uniform(0.64, 0.92)
    slant = draw.normal(0.07)
    turn = draw.normal(0.06)
    pen = height * draw.uniform(0.05, 0.115)
    gap = height * draw.uniform(0.05, 0.25)
    x = x - draw.normal(0.7)
    y = y - draw.normal(0.7)
    alphabet = draw.rng.integers(0, ALPHABETS, draw.n)
    length = draw.rng.choice(len(LENGTHS), draw.n, p=LENGTHS) + 1
    place = draw.rng.integers(0, length)  # of the centred digit in its number
    nearest = np.full((draw.n, SIZE, SIZE), np.inf, np.float32)
    for digit, offset in zip(labels, (0, -1, 1), strict=True):
        there = (place + offset >= 0) & (place + offset < length)
        spacing = (WIDTH[labels[0]] + WIDTH[digit])[:, None, None, None] / 2 * height * aspect + 2 * pen + gap
        v = y - turn * x
        u = x + turn * y - offset * spacing + slant * v
        column, row = ((at[there, ..., 0] + (0.5 + MARGIN)) * ((CELL - 1) / (1 + 2 * MARGIN))
                       for at in (u / (height * aspect), v / height))
        found = _look_up(bank, (alphabet * 10 + digit)[there, None, None], column, row)
        nearest[there] = np.minimum(nearest[there], found)
    return nearest[..., None] * height - pen


def _look_up(bank, cell, column, row):
    """The bank's cell at fractional columns and rows, bilinear; infinity outside the cell."""
    largest = CELL - 1.001
    outside = (column < 0) | (row < 0) | (column > largest) | (row > largest)
    column = np.clip(column, 0, largest)
    row = np.clip(row, 0, largest)
    i = row.astype(np.int32)
    j = column.astype(np.int32)
    down = row - i
    right = column - j
    flat = bank.reshape(-1)
    at = (cell * CELL + i) * CELL + j
    top = flat[at] * (1 - right) + flat[at + 1] * right
    low = flat[at + CELL] * (1 - right) + flat[at + CELL + 1] * right
    found = top * (1 - down) + low * down
    found[outside] = np.inf
    return found


def _behind(draw, paper, x, y):
    """What lies behind the digits: a plate, its edge in some images, and another colour beyond it."""
    along = np.where(draw.chance(0.5), x, y) * np.where(draw.chance(0.5), 1, -1)
    edge = _ramp(draw.uniform(10, 20) - along + draw.uniform(-0.1, 0.1) * (x + y)) * draw.chance(0.3)
    beyond = draw.normal(0.2) + draw.laplace(0.03) * WARM + draw.laplace(0.02) * GREEN
    return paper + beyond * edge


def _ramp(d):
    """1 far inside (d < -1), 0 far outside, smooth between: the edge of a blurred shape."""
    t = np.clip(0.5 - 0.5 * d, 0, 1)
    return t * t * (3 - 2 * t)
