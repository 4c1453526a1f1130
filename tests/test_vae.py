"""The whole model: TensorFlow's numbers for three steps, every gradient end to end, and what gradcheck says."""

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import GOLDEN

from minivae import checks, gradcheck
from minivae import vae as vae_module
from minivae.adam import Adam
from minivae.gaussian import Likelihood
from minivae.ops import numpy_ops, plain
from minivae.sigmas import FITTED_SIGMAS
from minivae.vae import VAE, Widths

golden = np.load(GOLDEN / "step_small.npz")
MOVING = ("moving_mean", "moving_var")


def close(found, expected, name):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10, err_msg=name)


def tensorflow_lr(t):
    """The lr that makes our bias correction TensorFlow's, which keeps beta2^t as a product of float32."""
    power = np.float32(1)
    for _ in range(t):
        power *= np.float32(0.999)
    exact = float(np.float32(0.999)) ** t
    return float(np.float32(1e-3)) * np.sqrt((1 - float(power)) / (1 - exact))


def test_three_steps_of_tensorflow(ops):
    vae = VAE((32, 32, 3), 4, ops, np.float64, widths=Widths((4, 8, 16), 32, (24, 12, 8)))
    assert {f"param/{p.name}" for p in vae.params.trained} == {n for n in golden.files if n.startswith("param/")}
    for p in vae.params.trained:
        p.value[...] = golden[f"param/{p.name}"]
    adam, history = Adam(vae.params, beta2=float(np.float32(0.999))), np.zeros((3, 2))
    for step in range(3):
        rec, kl = vae.forward(golden["x"][step], golden["eps"][step])
        close([rec.mean(), kl.mean()], golden["losses"][step][:2], f"losses of step {step}")
        vae.backward()
        if step == 0:
            check_first_step(vae)
        adam.lr[0] = tensorflow_lr(step + 1)
        adam.update()
        ops.record(rec, kl, adam.t, history)
    for p in vae.params.trained:
        close(p.value, golden[f"after3/{p.name}"], p.name)
    for p in vae.params.state:
        for row, name in zip(p.value, MOVING, strict=True):
            close(row, golden[f"after3/{p.name.removesuffix('moving')}{name}"], p.name)


def check_first_step(vae):
    close(vae.posterior.z, golden["first/z"], "z")
    close(vae.posterior.var, golden["first/var"], "var")
    close(vae.likelihood.x_hat, golden["first/x_hat"], "x_hat")
    for p in vae.params.trained:
        close(p.grad, golden[f"first/grad/{p.name}"], p.name)
    for p in vae.params.state:
        for row, name in zip(p.value, MOVING, strict=True):
            close(row, golden[f"first/after1/{p.name.removesuffix('moving')}{name}"], p.name)


@pytest.mark.parametrize("kl", ["sample", "analytic"])
@pytest.mark.parametrize("shape", [(16, 8, 1), (8, 24, 3)])
@pytest.mark.parametrize("train", [True, False])
def test_elbo_gradients(ops, rng, check, kl, shape, train):
    vae = VAE(shape, 3, ops, np.float64, kl=kl, widths=Widths((4, 5, 6), 7, (8, 6, 5)))
    for p in vae.params.trained[1:]:
        p.value += 0.2 * rng.standard_normal(p.shape)
    x, eps = rng.uniform(-1, 1, (5, *shape)), rng.standard_normal((5, 3))

    def f():
        rec, kl = vae.forward(x, eps, train)
        return (rec + kl).mean()

    f()
    dx = vae.backward(want_dx=True).copy()
    check(f, {"x": (x, dx)} | {p.name: (p.value, p.grad.copy()) for p in vae.params.trained})


def conditional(ops, rng):
    """A model that is given one of three labels, off its initial values; x, eps and labels of five images."""
    vae = VAE((8, 16, 3), 4, ops, np.float64, widths=Widths((4, 5, 6), 7, (8, 6, 5)), classes=3)
    for p in vae.params.trained[1:]:
        p.value += 0.2 * rng.standard_normal(p.shape)
    return vae, rng.uniform(-1, 1, (5, 8, 16, 3)), rng.standard_normal((5, 4)), np.array([2, 0, 2, 2, 0], np.int32)


def test_gradients_with_labels(ops, rng, check):
    vae, x, eps, labels = conditional(ops, rng)

    def f():
        rec, kl = vae.forward(x, eps, labels=labels)
        return (rec + kl).mean()

    f()
    dx = vae.backward(want_dx=True).copy()
    assert not vae.generator.dense.affine.w.grad[4 + 1].any()  # no image has label 1
    check(f, {"x": (x, dx)} | {p.name: (p.value, p.grad.copy()) for p in vae.params.trained})


def test_a_label_adds_its_row_to_the_generators_first_layer(ops, rng):
    """By hand: z w[:Z] + w[Z + label], and the gradient of that row is the sum over the images of the label."""
    vae, _, z, labels = conditional(ops, rng)
    dense = vae.generator.dense.affine
    w = dense.w.value
    y = dense.forward(vae.label.forward(z, labels))
    np.testing.assert_allclose(y, z @ w[:4] + w[4:][labels], rtol=1e-13)
    dy = rng.standard_normal(y.shape)
    np.testing.assert_allclose(vae.label.backward(dense.backward(dy)), dy @ w[:4].T, rtol=1e-12)
    rows = [z.T @ dy, *(dy[labels == k].sum(0)[None] for k in range(3))]
    np.testing.assert_allclose(dense.w.grad, np.concatenate(rows), rtol=1e-12)


def test_a_model_whose_labels_say_nothing_is_the_one_without(ops, rng):
    """The label's rows of the one weight that grows are zero; all else is the same."""
    given, x, eps, labels = conditional(ops, rng)
    plain_vae = VAE(given.shape, 4, ops, np.float64, widths=Widths((4, 5, 6), 7, (8, 6, 5)))
    given.generator.dense.affine.w.value[4:] = 0
    for mine, theirs in zip(plain_vae.params.trained, given.params.trained, strict=True):
        assert mine.name == theirs.name
        mine.value[...] = theirs.value[: len(mine.value)]
    np.testing.assert_array_equal(given.forward(x, eps, labels=labels), plain_vae.forward(x, eps))
    given.backward()
    plain_vae.backward()
    for mine, theirs in zip(plain_vae.params.trained, given.params.trained, strict=True):
        np.testing.assert_allclose(theirs.grad[: len(mine.grad)], mine.grad, rtol=1e-12, atol=1e-15, err_msg=mine.name)


def test_weights_with_labels_start_as_wide_as_all_inputs_want(ops):
    """The label's inputs count: sd sqrt(1.3 * 2 / (Z + Y)), a truncated normal's 0.88 of it."""
    w = VAE((8, 8, 1), 6, ops, widths=Widths((4, 5, 6), 7, (512, 6, 5)), classes=10).generator.dense.affine.w.value
    assert w.shape == (16, 512)
    assert w[6:].std() == pytest.approx(0.8796 * np.sqrt(1.3 * 2 / 16), rel=0.03)


def small_case(**settings):
    return checks.SMALL_CASES[0]._replace(**settings)


def failing(table):
    return [line.split("  ")[0] for line in table.splitlines() if line.endswith("FAILS")]


def test_gradcheck_passes_and_says_what_it_checked(capsys, few_checks):
    few_checks(*checks.SMALL_CASES)
    assert checks.run(numpy_ops)
    table = capsys.readouterr().out
    assert "gen/tconv2/w" in table and "\nx " in table and "\nz " in table and "every gradient agrees" in table
    for sigma in (1.0, 0.3, *FITTED_SIGMAS):
        for kl in ("sample", "analytic"):
            for mode in ("training", "test"):
                assert f"sigma {sigma}, kl {kl}, {mode} mode" in table


def changed(ops, **operations):
    return SimpleNamespace(**{**vars(ops), **operations})


def test_gradcheck_points_to_the_lowest_wrong_row(capsys, few_checks):
    def wrong_dw(x, dy, dw):
        plain.dense_dw(x, dy, dw)
        dw[0] *= 1.01

    few_checks()
    wrong = changed(plain, dense_dw=wrong_dw)
    assert not checks.run(wrong, wrong)
    table = capsys.readouterr().out
    assert failing(table) == ["enc/dense/w", "enc/mean/w", "enc/var/w", "gen/dense/w"]
    assert "Look first at gen/dense/w, the lowest row" in table and table.count("\n(") == 10
    assert "FAILED" in table


def one_piece(ops):
    def conv_dw(cols, dy, g, dw):
        dy = dy.copy()
        dy[16:] = 0
        ops.conv_dw(cols, dy, g, dw)

    return {"conv_dw": conv_dw}


def sign_of_dlog_sigma(ops):
    def log_sigma_dx(rec, log_sigma, size, scale, dlog_sigma):
        ops.log_sigma_dx(rec, log_sigma, size, -scale, dlog_sigma)

    return {"log_sigma_dx": log_sigma_dx}


def pixel_without_sigmoid(ops):
    def tanh_gaussian_pixel(a, b, x, scale, x_hat, rec, da, db):
        ops.tanh_gaussian_pixel(a, b, x, scale, x_hat, rec, da, db)
        c = x.shape[-1]
        da[..., c:] *= 1 + np.exp(-a[..., c:] - b[c:])

    return {"tanh_gaussian_pixel": tanh_gaussian_pixel}


def wrong_test_mode(ops):
    def batch_norm_dx(dy, x, moments, gamma, beta, slope, train, dx, dgamma, dbeta):
        ops.batch_norm_dx(dy, x, moments, gamma, beta, slope, True, dx, dgamma, dbeta)

    return {"batch_norm_dx": batch_norm_dx}


@pytest.mark.parametrize("fault, settings", [
    (one_piece, {}), (sign_of_dlog_sigma, {"sigma": "learned"}), (pixel_without_sigmoid, {"sigma": "pixel"}),
    (wrong_test_mode, {"train": False})])
def test_gradcheck_catches(fault, settings, capsys, few_checks):
    """In the definition by finite differences, and in the fast operations by the definition."""
    few_checks(small_case(**settings))
    wrong = changed(plain, **fault(plain))
    if fault is not one_piece:  # the definition has no pieces
        assert not checks.run(wrong, wrong)
    assert not checks.run(wrong)
    assert "FAILS" in capsys.readouterr().out


def test_a_small_gradient_that_is_one_percent_wrong_fails(rng):
    p = rng.standard_normal(7)
    weights = 1e-4 * rng.standard_normal(7)

    def f():
        return float(weights @ p)

    assert gradcheck.directional(f, p, weights, rng)[2] < gradcheck.TOLERANCE
    assert gradcheck.directional(f, p, 1.01 * weights, rng)[2] > 1e-3


def test_elements_name_the_worst_first(rng):
    p = rng.standard_normal((3, 4))
    grad = 2 * p
    grad[1, 2] += 1

    def f():
        return float((p**2).sum())

    found = gradcheck.elements(f, p, grad, rng, count=12)
    assert found[0][0] == (1, 2) and len(found) == 12
    assert found[0][1] - found[0][2] == pytest.approx(1, abs=1e-6)
    assert all(analytic == pytest.approx(numeric, abs=1e-6) for _, analytic, numeric in found[1:])


class Bernoulli(Likelihood):
    """p(x|z) = Bernoulli(sigmoid(a + b)) of x in [-1, 1] read as (x + 1) / 2, as a reader might put it in."""

    def forward(self, a, x, z, train):
        logits = a + self.b.value
        target = (x + 1) / 2
        self.da = (1 / (1 + np.exp(-logits)) - target) / len(a)
        self.b.grad[...] = self.da.sum((0, 1, 2))
        self.logits = logits
        return (np.logaddexp(0, logits) - target * logits).sum((1, 2, 3))

    def dx(self):
        return -self.logits / (2 * len(self.logits))


def test_another_likelihood_passes_with_its_own_dx(ops, monkeypatch, capsys):
    monkeypatch.setattr(vae_module, "Likelihood", Bernoulli)
    rows = checks.model_rows(ops, small_case())
    assert checks.check("Bernoulli", rows, rows, ops.to_host), capsys.readouterr().out


def test_encode_and_decode_give_arrays_of_the_callers(ops, rng):
    vae = VAE((8, 8, 1), 3, ops, np.float64, widths=Widths((4, 5, 6), 7, (8, 6, 5)))
    x = rng.uniform(-1, 1, (2, 8, 8, 1))
    first = vae.encode(x)
    kept = first.copy()
    vae.encode(-x)
    np.testing.assert_array_equal(first, kept)
    first = vae.decode(kept)
    kept = first.copy()
    vae.decode(rng.standard_normal((2, 3)))
    np.testing.assert_array_equal(first, kept)


def test_encode_gives_the_mean(ops, rng):
    vae = VAE((8, 8, 1), 3, ops, np.float64, widths=Widths((4, 5, 6), 7, (8, 6, 5)))
    x = rng.uniform(-1, 1, (4, 8, 8, 1))
    mean, s = vae.encoder.forward(x, train=False)
    assert not np.allclose(mean, s)
    np.testing.assert_array_equal(vae.encode(x), mean)


def test_the_seed_decides_the_initial_weights(ops):
    first, again, other = (VAE((8, 8, 1), 3, ops, seed=seed, widths=checks.SMALL).params.values for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    weights = VAE((8, 8, 1), 3, ops, seed=1, widths=checks.SMALL).params.trained[0].value
    assert not np.isclose(first[: weights.size], other[: weights.size]).any()


def test_encode_and_decode_do_not_depend_on_the_batch(ops, rng):
    """Batch norm left in training mode would."""
    vae = VAE((8, 8, 1), 3, ops, np.float64, widths=Widths((4, 5, 6), 7, (8, 6, 5)))
    x, z = rng.uniform(-1, 1, (6, 8, 8, 1)), rng.standard_normal((6, 3))
    means, x_hat = vae.encode(x).copy(), vae.decode(z).copy()
    np.testing.assert_allclose(vae.encode(x[3:4]), means[3:4], rtol=1e-12)
    np.testing.assert_allclose(vae.decode(z[3:4]), x_hat[3:4], rtol=1e-12)
