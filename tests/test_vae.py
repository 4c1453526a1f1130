"""The whole model: TensorFlow's numbers for three steps, every gradient end to end, and what gradcheck says."""

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import GOLDEN

from minivae import gradcheck
from minivae.adam import Adam
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
    dx = vae.backward(want_dx=True) + (x - vae.likelihood.x_hat) / len(x)
    check(f, {"x": (x, dx)} | {p.name: (p.value, p.grad.copy()) for p in vae.params.trained})


def test_gradcheck_finds_a_wrong_gradient(ops, capsys, monkeypatch):
    monkeypatch.setattr(gradcheck.model, "__defaults__", ((8, 8, 1), 3, 4))
    assert gradcheck.run(ops)
    table = capsys.readouterr().out
    assert "gen/tconv2/w" in table and "\nx " in table and "every gradient agrees" in table

    def wrong_dw(x, dy, dw):
        ops.dense_dw(x, dy, dw)
        dw[0] *= 1.01

    assert not gradcheck.run(SimpleNamespace(**{**vars(ops), "dense_dw": wrong_dw}))
    table = capsys.readouterr().out
    assert [line.split()[0] for line in table.splitlines() if "FAILS" in line] == \
        2 * ["enc/dense/w", "enc/mean/w", "enc/var/w", "gen/dense/w"]


def test_encode_and_decode_do_not_depend_on_the_batch(ops, rng):
    """Batch norm left in training mode would."""
    vae = VAE((8, 8, 1), 3, ops, np.float64, widths=Widths((4, 5, 6), 7, (8, 6, 5)))
    x, z = rng.uniform(-1, 1, (6, 8, 8, 1)), rng.standard_normal((6, 3))
    means, x_hat = vae.encode(x).copy(), vae.decode(z).copy()
    np.testing.assert_allclose(vae.encode(x[3:4]), means[3:4], rtol=1e-12)
    np.testing.assert_allclose(vae.decode(z[3:4]), x_hat[3:4], rtol=1e-12)
