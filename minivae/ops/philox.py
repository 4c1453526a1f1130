"""Philox4x32-10: random bits as a pure function of (seed, stream, step, position).

A counter-based generator has no state to save or to keep in step between devices: eps of update t is the same bits
on a CPU, on a GPU and after a resume. Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as
1, 2, 3", SC 2011.
"""

import numpy as np
from scipy.special import ndtr, ndtri

STREAMS = {"init": 0, "train": 1, "test": 2, "batch": 3, "density": 4, "train pixels": 5, "test pixels": 6}
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox4x32(counter, key):
    """Ten rounds of Philox.  counter (..., 4), key (..., 2) uint32  ->  (..., 4) uint32 random words."""
    c0, c1, c2, c3 = np.moveaxis(np.asarray(counter, np.uint64), -1, 0)
    k0, k1 = np.moveaxis(np.asarray(key, np.uint64), -1, 0)
    for _ in range(10):
        p, q = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1 = (q >> _SHIFT) ^ c1 ^ k0, q & _LOW
        c2, c3 = (p >> _SHIFT) ^ c3 ^ k1, p & _LOW
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & _LOW, (k1 + np.uint64(0xBB67AE85)) & _LOW
    return np.stack([c0, c1, c2, c3], -1).astype(np.uint32)


def words(seed, stream, step, count, first=0):
    """`count` uint32 words for (seed, stream, step): counter = (position // 4, stream, step), key = seed.

    seed and step are taken modulo 2^64, stream is a number of STREAMS. In place of a seed there may be keys (N, 2)
    uint32: the words are then (N, count), a row for each key. first: the position of the first, a multiple of 4.
    """
    step = int(step) % 2**64
    if np.ndim(seed) == 0:
        seed = int(seed) % 2**64
        key = seed & 0xFFFFFFFF, seed >> 32
    else:
        key = seed[:, None]
    counter = np.empty((-(-count // 4), 4), np.uint32)
    counter[:, 0] = first // 4 + np.arange(len(counter))
    counter[:, 1:] = stream, step & 0xFFFFFFFF, step >> 32
    found = philox4x32(counter, key)  # (..., words / 4, 4)
    return found.reshape(*found.shape[:-2], -1)[..., :count]


def uniforms(seed, stream, step, count, first=0):
    """`count` float64 values in the open interval (0, 1): (word + 1/2) / 2^32, so that a logarithm is finite."""
    return (words(seed, stream, step, count, first) + 0.5) * 2.0**-32


def normals(seed, stream, step, count):
    """`count` float64 standard normals, two from each pair of words (Box and Muller, 1958), |value| < 6.7.

    (u, v) uniform  ->  sqrt(-2 ln u) cos(2 pi v),  sqrt(-2 ln u) sin(2 pi v)
    """
    pairs = uniforms(seed, stream, step, count + count % 2)
    u = pairs[..., ::2]
    v = pairs[..., 1::2]
    radius = np.sqrt(-2 * np.log(u))
    found = np.stack([radius * np.cos(2 * np.pi * v), radius * np.sin(2 * np.pi * v)], -1)
    return found.reshape(pairs.shape)[..., :count]


def truncated_normals(seed, stream, step, count):
    """`count` float64 values of a standard normal cut at +-2, by its inverse distribution function.

    u uniform in (0, 1)  ->  Phi^-1(Phi(-2) + u (Phi(2) - Phi(-2))). Their sd is 0.8796, not 1, as in TensorFlow.
    """
    low = ndtr(-2.0)
    high = ndtr(2.0)
    return ndtri(low + uniforms(seed, stream, step, count) * (high - low))


def choose(seed, stream, step, count, population):
    """`count` distinct integers below `population`, every ordered choice equally likely: a batch without replacement.

    The first `count` swaps of a Fisher-Yates shuffle of range(population), of which only the touched places are kept.
    Integers come from 64 random bits modulo the range, a bias below population / 2^64.
    """
    draws = words(seed, stream, step, 2 * count).astype(np.uint64).reshape(-1, 2)
    draws = (draws[:, 0] << _SHIFT | draws[:, 1]) % (population - np.arange(count)).astype(np.uint64)
    moved, chosen = {}, np.empty(count, np.int32)
    for i, j in enumerate(draws.tolist()):
        j += i
        chosen[i] = moved.get(j, j)
        moved[j] = moved.get(i, i)
    return chosen
