"""q(z|x) and p(x|z): gradients, and draws against the densities that the loss is made of."""

import numpy as np
import pytest
from scipy import stats

from minivae.ops import philox


def latent(ops, mean, s, eps, analytic):
    z, var, kl = np.full_like(mean, np.nan), np.full_like(mean, np.nan), np.full(len(mean), np.nan, mean.dtype)
    ops.latent(mean, s, eps, analytic, z, var, kl)
    return z, var, kl


@pytest.mark.parametrize("analytic", [False, True])
def test_latent_gradients(ops, rng, check, analytic):
    """L = <z, dz> + 0.3 sum kl: the path through z and the KL's own, at once and apart."""
    mean, s, eps, direction = rng.standard_normal((4, 5, 3))
    for dz in (direction, np.zeros_like(direction)):

        def f(dz=dz):
            z, _, kl = latent(ops, mean, s, eps, analytic)
            return np.vdot(z, dz) + 0.3 * kl.sum()

        z, var, _ = latent(ops, mean, s, eps, analytic)
        dmean, ds = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
        ops.latent_dx(dz, mean, s, eps, analytic, 0.3, z, var, dmean, ds)
        check(f, {"mean": (mean, dmean), "s": (s, ds)})


def test_kl_is_the_difference_of_log_densities(ops, rng):
    mean, s, eps = rng.standard_normal((3, 5, 4))
    z, var, kl = latent(ops, mean, s, eps, False)
    np.testing.assert_allclose(var, np.log1p(np.exp(s)) + 1e-5, rtol=1e-14)
    expected = stats.norm.logpdf(z, mean, np.sqrt(var)) - stats.norm.logpdf(z)
    np.testing.assert_allclose(kl, expected.sum(1), rtol=1e-12)


def test_z_is_drawn_from_the_density_in_the_kl(ops):
    """mean and variance of many z against mean and var: a wrong standard deviation passes every gradient check."""
    n = 200_000
    mean, s = np.full((n, 2), [0.5, -2.0]), np.full((n, 2), [-1.0, 3.0])
    eps = philox.normals(0, 1, 0, 2 * n).reshape(n, 2)
    z, var, kl = latent(ops, mean, s, eps, False)
    np.testing.assert_allclose(z.mean(0), mean[0], atol=5 * (var[0].max() / n) ** 0.5)
    np.testing.assert_allclose(z.var(0), var[0], rtol=5 * (2 / n) ** 0.5)
    for i in range(2):
        assert stats.kstest(z[:, i], stats.norm(mean[0, i], var[0, i] ** 0.5).cdf).pvalue > 1e-3
    exact = latent(ops, mean, s, eps, True)[2][0]
    assert abs(kl.mean() - exact) < 5 * kl.std() / n**0.5  # the one-sample KL averages to the analytic one


def test_analytic_kl_by_hand(ops):
    s = np.log(np.expm1([[1 - 1e-5, 4 - 1e-5]]))  # var 1 and 4
    kl = latent(ops, np.array([[1.0, 0.0]]), s, np.zeros((1, 2)), True)[2]
    assert kl[0] == pytest.approx(0.5 + (4 - 1 - np.log(4)) / 2, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("analytic", [False, True])
@pytest.mark.filterwarnings("error")
def test_extreme_variances_stay_finite(ops, dtype, analytic):
    s = np.array([[-1e4, -100, -20, 0, 20, 100, 1e4]], dtype)
    eps, mean = np.ones_like(s), np.zeros_like(s)
    z, var, kl = latent(ops, mean, s, eps, analytic)
    np.testing.assert_allclose(var[0, [0, 1, -1]], [1e-5, 1e-5, 1e4], rtol=1e-5)
    dmean, ds = np.empty_like(s), np.empty_like(s)
    ops.latent_dx(eps, mean, s, eps, analytic, 0.1, z, var, dmean, ds)
    assert all(np.isfinite(a).all() for a in (z, var, kl, dmean, ds))


@pytest.mark.parametrize("shape", [(4, 3, 5, 3), (2, 2, 2, 1)])
def test_likelihood_gradients(ops, rng, check, shape):
    a, b, x = rng.standard_normal(shape), rng.standard_normal(shape[-1]), rng.uniform(-1, 1, shape)
    x_hat, da, db, rec = np.empty(shape), np.empty(shape), np.empty(shape[-1]), np.empty(shape[0])

    def f():
        ops.tanh_gaussian(a, b, x, np.zeros(1), 1 / len(a), x_hat, rec, da, db)
        return rec.mean()

    f()
    check(f, {"a": (a, da.copy()), "b": (b, db.copy())})
    f()
    np.testing.assert_allclose(x_hat, np.tanh(a + b), rtol=1e-14)
    np.testing.assert_allclose(rec, ((x - x_hat) ** 2).sum((1, 2, 3)) / 2, rtol=1e-13)


@pytest.mark.filterwarnings("error")
def test_saturated_tanh_stays_finite(ops):
    a = np.array([[-1e30, 0, 1e30]], np.float32).reshape(1, 1, 1, 3)
    out = [np.empty_like(a), np.empty(1, np.float32), np.empty_like(a), np.empty(3, np.float32)]
    ops.tanh_gaussian(a, np.zeros(3, np.float32), np.zeros_like(a), np.zeros(1, np.float32), 1, *out)
    np.testing.assert_array_equal(out[0].ravel(), [-1, 0, 1])
    np.testing.assert_array_equal(out[2].ravel(), [0, 0, 0])
