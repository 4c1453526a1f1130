"""Batch normalization on all cores, forward and backward; plain.py defines it.

Arrays are walked as rows of about ROW_ELEMENTS, with the channels' parameters tiled to that width: a ufunc reaches its
full speed on inner loops of that length, and a row of C elements would make them C long.
"""

import numpy as np

from minivae.ops import BN_EPS, own_sums
from minivae.ops.plain import moving_average
from minivae.ops.threads import parallel, scratch, split

ROW_ELEMENTS = 2048
PIECE_ELEMENTS = 2**17  # of one thread's piece: its arrays fit in the caches, and it is worth waking a thread


def batch_moments(x, moments):
    """From the mean m_i and the variance v_i of every piece; with f_i its fraction of the rows

        mean = sum f_i m_i      var = sum f_i (v_i + (m_i - mean)^2)
    """
    c = x.shape[-1]
    wide = _wide(x, c)
    pieces = _pieces(wide)
    means, variances = np.empty((2, len(pieces), c), x.dtype)

    def work(i):
        piece = wide[pieces[i]]
        means[i] = _sum_rows(piece, c) / (piece.size // c)
        centred = np.subtract(piece, _tile(means[i], wide), out=scratch("centred", piece.shape, x.dtype))
        variances[i] = _channel_dot(centred, centred, c) / (piece.size // c)

    parallel(work, range(len(pieces)))
    fractions = np.array([(p.stop - p.start) / len(wide) for p in pieces], x.dtype)
    moments[0] = fractions @ means
    moments[1] = fractions @ (variances + (means - moments[0]) ** 2)


def batch_norm(x, moments, gamma, beta, slope, y, moving=None, decay=1):
    wide = _wide(x, x.shape[-1])
    out = _wide(y, x.shape[-1])
    scale, offset = _scale_and_offset(moments, gamma, beta, wide)

    def work(piece):
        u = np.multiply(wide[piece], scale, out=out[piece])
        np.add(u, offset, out=u)
        if slope != 1:
            np.maximum(u, np.multiply(u, slope, out=scratch("slope", u.shape, x.dtype)), out=u)

    parallel(work, _pieces(wide))
    if moving is not None:
        moving_average(moving, moments, decay)


def batch_norm_dx(dy, x, moments, gamma, beta, slope, train, dx, dgamma, dbeta, whole=own_sums):
    """One pass finds the two sums of every piece and leaves g = dy leaky'(u) in dx; a second one finishes dx there."""
    c = x.shape[-1]
    wide = _wide(x, c)
    given = _wide(dy, c)
    out = _wide(dx, c)
    pieces = _pieces(wide)
    mean = _tile(moments[0], wide)
    rstd = _rstd(moments)
    scale, offset = _scale_and_offset(moments, gamma, beta, wide)
    sums, dots = np.empty((2, len(pieces), c), x.dtype)

    def reduce(i):
        g = out[pieces[i]]
        centred = np.subtract(wide[pieces[i]], mean, out=scratch("centred", g.shape, x.dtype))
        if slope != 1:
            u = np.multiply(wide[pieces[i]], scale, out=scratch("u", g.shape, x.dtype))
            np.multiply(given[pieces[i]], _leaky_slope(np.add(u, offset, out=u), slope), out=g)
        elif out is not given:
            np.copyto(g, given[pieces[i]])
        sums[i] = _sum_rows(g, c)
        dots[i] = _channel_dot(g, centred, c)

    parallel(reduce, range(len(pieces)))
    dbeta[...] = sums.sum(0)
    dgamma[...] = dots.sum(0) * rstd
    by_gamma, by_beta, rows = (whole if train else own_sums)(dgamma, dbeta, x.size // c)
    by_x = -gamma * rstd**2 * by_gamma / rows  # dx = scale g + by_x x + constant
    constant = _tile(-gamma * rstd * by_beta / rows - by_x * moments[0], wide)
    by_x = _tile(by_x, wide)

    def finish(piece):
        g = out[piece]
        np.multiply(g, scale, out=g)
        if train:
            np.add(g, constant, out=g)
            np.add(g, np.multiply(wide[piece], by_x, out=scratch("centred", g.shape, x.dtype)), out=g)

    parallel(finish, pieces)


def _leaky_slope(u, slope):
    """leaky'(u) in place of u: 1, or slope where the sign bit is set; integers do it without a branch."""
    integer = np.dtype(f"i{u.itemsize}")
    one, other = np.array([1, slope], u.dtype).view(integer)
    bits = u.view(integer)
    np.right_shift(bits, 8 * u.itemsize - 1, out=bits)  # all ones, or all zeros
    np.bitwise_and(bits, one ^ other, out=bits)
    np.bitwise_xor(bits, one, out=bits)
    return u


def _rstd(moments):
    return 1 / np.sqrt(moments[1] + moments.dtype.type(BN_EPS))


def _scale_and_offset(moments, gamma, beta, wide):
    """u = scale x + offset, forward and backward alike: a u near 0 has the same sign in both."""
    scale = gamma * _rstd(moments)
    return _tile(scale, wide), _tile(beta - moments[0] * scale, wide)


def _wide(x, c):
    """x (..., C), which has M rows, as (M / r, r C) with r C near ROW_ELEMENTS."""
    rows = x.size // c
    r = max(ROW_ELEMENTS // c, 1)
    while rows % r:
        r -= 1
    return x.reshape(rows // r, r * c)


def _pieces(wide):
    return split(len(wide), PIECE_ELEMENTS // wide.shape[1])


def _tile(row, wide):
    return np.tile(row, wide.shape[1] // row.size)


def channel_sum(x):
    """The sums (C,) of x (..., C) over all axes but the last."""
    return _sum_rows(_wide(x, x.shape[-1]), x.shape[-1])


def _sum_rows(wide, c):
    return wide.sum(0).reshape(-1, c).sum(0)


def _channel_dot(a, b, c):
    return np.einsum("rc,rc->c", a, b).reshape(-1, c).sum(0)
