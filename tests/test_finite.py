"""A run that stops being finite says where, keeps its checkpoint and saves the batch; what could overflow, does not."""

import numpy as np
import pytest
from test_train import TEST, config, trainer

from minivae.errors import UserError
from minivae.training import checkpoint
from minivae.training.evaluation import Evaluation
from minivae.training.loop import train
from minivae.training.runs import Run

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.mark.parametrize("name, value, first", [
    ("enc/conv2/w", np.nan, "parameter enc/conv2/w"),
    ("enc/conv2/w", 1e38, "moments of enc/conv2 .operation conv"),
    ("gen/tconv2/gamma", 3e38, "y of gen/tconv2 .operation batch_norm"),
    ("enc/mean/gamma", 1e25, "kl .operation latent"),
])
def test_the_first_array_is_named(ops, tmp_path, name, value, first):
    run = Run.create(tmp_path / "run", "x", config())
    t = trainer(ops, np.float32)
    next(p for p in t.vae.params.trained if p.name == name).value.flat[0] = value
    with pytest.raises(UserError, match=f"step 1 is not finite, first in {first}.*smaller --lr"):
        train(run, t, TEST)


def diverge(t, last):
    """From step `last` on, the learning rate is far too large: the next step overflows."""
    update = t.adam.update

    def faster(first=None):
        t.adam.lr[0] = 1e-3 if t.step_count < last - 1 else 1e30
        update(first)

    t.adam.update = faster


@pytest.mark.parametrize("step", [2, 4])
def test_a_failure_seen_late_is_found_again(ops, tmp_path, step):
    """As on a GPU, where the steps since the last checkpoint, or since the start, are taken again, each checked."""
    messages = []
    for check_each in (True, False):
        run = Run.create(tmp_path / str(check_each), "x", config(checkpoint_every=4, log_every=3))
        t = trainer(ops, np.float32, log_every=3)
        t.check_each = check_each
        diverge(t, step)
        with pytest.raises(UserError) as e:
            train(run, t, TEST)
        messages.append(str(e.value).split(";")[0])
        with np.load(run / "not-finite.npz") as batch:
            assert batch["step"] == step + 1 and batch["eps"].shape == (16, 4)
            rows = t.batches.draw(step // 3)[step % 3]
            np.testing.assert_array_equal(batch["images"], t.batches.images[rows])
        if step == 4:
            again = trainer(ops, np.float32, log_every=3)
            checkpoint.load_training(run / "checkpoint.h5", again)
            assert again.step_count == 4 and np.isfinite(again.vae.params.values).all()
    assert messages[0] == messages[1]
    assert f"step {step + 1} is not finite, first in moments of enc/conv1 (operation conv)" in messages[0]


def test_a_gradient_stops_the_run_before_adam(ops, tmp_path):
    """The loss is finite and one gradient is not: the parameters stay as they were."""
    run = Run.create(tmp_path / "run", "x", config())
    t, backward = trainer(ops, np.float32), None
    backward = t.vae.backward

    def broken(**options):
        backward(**options)
        t.vae.params.trained[3].grad.flat[0] = np.inf

    t.vae.backward = broken
    before = t.vae.params.values.copy()
    with pytest.raises(UserError, match="step 1 was not finite, but was finite when it was run again"):
        train(run, t, TEST)
    np.testing.assert_array_equal(t.vae.params.values, before)


def test_a_square_that_overflows(ops, tmp_path):
    """Every gradient is finite, of the order of 1 / sigma^2, and Adam's square of one is not."""
    run = Run.create(tmp_path / "run", "x", config(sigma=1e-12))
    with pytest.raises(UserError, match="step 1 is not finite, first in the square of .*'s gradient;.*larger --sigma"):
        train(run, trainer(ops, np.float32, sigma=1e-12), TEST)


@pytest.mark.parametrize("checkpoint_every", [3, 100])
def test_parameters_are_checked_where_steps_are_not(ops, tmp_path, checkpoint_every):
    """Losses are finite, the last gradient was not: that is seen before a line or a checkpoint is written."""
    run = Run.create(tmp_path / "run", "x", config(checkpoint_every=checkpoint_every, log_every=9, eval_every=6))
    t = trainer(ops, np.float32, log_every=9)
    t.check_each = False
    step, last = t._step, min(checkpoint_every, 6)

    def broken():
        step()
        if t.step_count == last - 1:
            t.vae.params.values[5] = np.nan

    t._step = broken
    with pytest.raises(UserError, match=f"step {last} was not finite"):
        train(run, t, TEST)
    assert run.metrics() == []
    assert checkpoint.load_model(run / "checkpoint.h5", t.vae, t.config)[0] == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("s", [-1e30, -1e4, -100, 0, 100, 1e4, 1e30])
@pytest.mark.parametrize("analytic", [False, True])
def test_any_logit_of_the_variance(ops, dtype, s, analytic):
    """softplus, log and the logistic function, forward and backward, far beyond where exp overflows."""
    mean, eps, dz = np.zeros((3, 1, 2), dtype)
    eps += 1
    s = np.full((1, 2), s, dtype)
    z, var, dmean, ds = np.empty((4, 1, 2), dtype)
    kl = np.empty(1, dtype)
    ops.latent(mean, s, eps, analytic, z, var, kl)
    ops.latent_dx(dz, mean, s, eps, analytic, 1.0, z, var, dmean, ds)
    for array in (z, var, kl, dmean, ds):
        assert np.isfinite(array).all()
    np.testing.assert_allclose(var, np.maximum(s, 0) + 1e-5 + (np.log(2) if s[0, 0] == 0 else 0), rtol=1e-6)
    if s[0, 0] < -100:
        assert (ds == 0).all()


@pytest.mark.parametrize("logit", [-1e30, -1e4, -20, 0, 20, 1e4, 1e30])
@pytest.mark.parametrize("pixel", [-1, 1])
def test_any_logit_of_a_pixel(ops, logit, pixel):
    """tanh saturates at +-1, with a gradient that is finite, whichever pixel stands against it."""
    a, b = np.full((1, 8, 8, 1), logit, np.float32), np.zeros(1, np.float32)
    x, x_hat, da = (np.full_like(a, pixel) for _ in range(3))
    rec, db = np.empty(1, np.float32), np.empty(1, np.float32)
    ops.tanh_gaussian(a, b, x, np.zeros(1, np.float32), 1.0, x_hat, rec, da, db)
    np.testing.assert_allclose(x_hat, np.tanh(np.clip(logit, -30, 30)), rtol=1e-6)
    np.testing.assert_allclose(rec, 64 * (np.tanh(np.clip(logit, -30, 30)) - pixel) ** 2 / 2, rtol=1e-5)
    assert np.isfinite(da).all() and (abs(logit) < 100 or (da == 0).all())
    heads, twice = np.full((1, 8, 8, 2), logit, np.float32), np.zeros(2, np.float32)
    da, db = np.empty_like(heads), np.empty(2, np.float32)
    ops.tanh_gaussian_pixel(heads, twice, x, 1.0, x_hat, rec, da, db)
    assert np.isfinite(rec).all() and np.isfinite(da).all() and np.isfinite(db).all()


def test_any_image(ops):
    """All black, all white, and one pixel of either: variances of zero, and the largest that a batch can have."""
    images = np.zeros((16, 8, 8, 3), np.uint8)
    for fill in (0, 255, None):
        images[...] = fill if fill is not None else np.arange(16).reshape(-1, 1, 1, 1) % 2 * 255
        t = trainer(ops, np.float32, images)
        for _ in range(5):
            t.step()
        assert np.isfinite(t.losses()).all() and np.isfinite(Evaluation(t.vae, images, 0).losses()).all()
