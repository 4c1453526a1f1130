"""Random bits against their published answers, and the moments of all that is drawn from them."""

import numpy as np
import pytest
from scipy import stats

from minivae.ops import numpy_ops, philox

PI = 0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0


@pytest.mark.parametrize("counter, key, expected", [  # kat_vectors of Random123, philox4x32-10
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (PI[:4], PI[4:], [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
])
def test_known_answers(counter, key, expected):
    np.testing.assert_array_equal(philox.philox4x32(np.array(counter, np.uint32), key), np.array(expected, np.uint32))


def test_seed_stream_step_and_position_all_matter():
    draws = [philox.words(*place, 8) for place in ((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (1 + 2**32, 1, 1),
                                                    (1, 1, 1 + 2**32))]
    assert len(np.unique(draws)) == 48
    np.testing.assert_array_equal(philox.words(1, 1, 1, 5), draws[0][:5])


def test_a_row_for_each_key():
    """It is what the key's seed gives alone, also in rows of odd length."""
    seeds = [3, 2**40 + 9, 2**64 - 1]
    keys = np.array([(seed & 0xFFFFFFFF, seed >> 32) for seed in seeds], np.uint32)
    for draw in (philox.words, philox.uniforms, philox.normals):
        np.testing.assert_array_equal(draw(keys, 4, 2**33, 7), [draw(seed, 4, 2**33, 7) for seed in seeds])


def test_normals(rng):
    x = philox.normals(3, philox.STREAMS["train"], 9, 400_001)
    assert x.size == 400_001
    assert stats.kstest(x, "norm").pvalue > 1e-3
    for power, moment, sd in ((1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)):
        assert abs((x**power).mean() - moment) < 4 * sd / x.size**0.5
    assert abs(np.corrcoef(x[:-1:2], x[1::2])[0, 1]) < 4 / 200_000**0.5  # the two of a Box-Muller pair


def test_normal_fills_by_step():
    t, a, b = np.array([3]), np.zeros((5, 3), np.float32), np.zeros((5, 3))
    numpy_ops.normal(11, 1, t, a)
    numpy_ops.normal(11, 1, t, b)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_array_equal(b.ravel(), philox.normals(11, 1, 3, 15))
    numpy_ops.normal(11, 1, t + 1, a)
    assert not np.isclose(a, b).any()


def test_uniforms_never_reach_their_ends():
    assert (np.array([0, 2**32 - 1], np.uint32) + 0.5).min() * 2.0**-32 > 0
    u = philox.uniforms(0, 0, 0, 100_000)
    assert 0 < u.min() and u.max() < 1 and stats.kstest(u, "uniform").pvalue > 1e-3


def test_truncated_normal_moments():
    """The sd of a normal cut at 2 sd is 0.8796..., TensorFlow's too: the init is narrower than its nominal sd."""
    x = philox.truncated_normals(0, 0, 0, 300_000)
    law = stats.truncnorm(-2, 2)
    assert np.abs(x).max() <= 2 and np.abs(x).max() > 1.999
    assert abs(x.mean()) < 4 * law.std() / x.size**0.5
    assert x.std() == pytest.approx(law.std(), abs=4e-3)
    assert stats.kstest(x, law.cdf).pvalue > 1e-3


def test_choose_is_a_uniform_draw_without_replacement():
    draws = np.stack([philox.choose(0, philox.STREAMS["batch"], t, 3, 5) for t in range(12_000)])
    assert all(len(set(row)) == 3 for row in draws.tolist())
    _, counts = np.unique(draws @ [25, 5, 1], return_counts=True)
    assert counts.size == 60 and stats.chisquare(counts).pvalue > 1e-3  # every ordered choice alike
    assert sorted(philox.choose(0, 3, 0, 64, 64)) == list(range(64))
