"""Statistics for test mode: what they are, that training does not notice them, and who uses them."""

import h5py
import numpy as np
import pytest
from test_train import TEST, config, trainer

from minivae.ops.philox import STREAMS
from minivae.training import checkpoint, loop, statistics
from minivae.training.runs import Run
from minivae.training.statistics import estimated


def norms(vae):
    e, g = vae.encoder, vae.generator
    return [block.norm for block in (e.conv1, e.conv2, e.conv3, e.dense, e.mean, e.var, g.dense, g.tconv1, g.tconv2)]


@pytest.mark.parametrize("steps, batches", [(7, 7), (9, 8)])
def test_they_are_the_mean_of_the_last_batches_moments(ops, monkeypatch, steps, batches):
    monkeypatch.setattr(statistics, "BATCHES", 8)
    t = trainer(ops, sigma="optimal")
    for _ in range(steps):
        t.step()
    with estimated(t):
        found = [norm.moving.value.copy() for norm in norms(t.vae)]
        log_sigma = t.vae.likelihood.log_sigma.value.copy()
    moments = []
    fitted = []
    for step in range(steps - batches, steps):
        x = t.batches.images[t.batches.draw(step // 4)[step % 4]] / 127.5 - 1
        ops.dequantize(0, STREAMS["train pixels"], np.array([step]), x)
        eps = np.empty((16, 4))
        ops.normal(0, 1, np.array([step]), eps)
        rec, _ = t.vae.forward(x, eps)
        moments.append([norm.moments.copy() for norm in norms(t.vae)])
        fitted.append((rec.mean() - x[0].size / 2) / x[0].size)  # mean rec is D/2 + D ln sigma
    for mine, *expected in zip(found, *moments, strict=True):
        np.testing.assert_allclose(mine, np.mean(expected, 0), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(log_sigma, np.mean(fitted), rtol=1e-9)


def test_training_does_not_notice_them(ops, monkeypatch):
    """Not after an error either. log_every is 4: the batches come from other chunks than the next step's."""
    monkeypatch.setattr(statistics, "BATCHES", 6)
    looked, straight = trainer(ops, np.float32), trainer(ops, np.float32)
    for _ in range(10):
        straight.step()
        looked.step()
        with pytest.raises(KeyboardInterrupt), estimated(looked):
            assert not np.array_equal(looked.vae.params.moving_statistics, straight.vae.params.moving_statistics)
            raise KeyboardInterrupt
        np.testing.assert_array_equal(looked.vae.params.moving_statistics, straight.vae.params.moving_statistics)
    np.testing.assert_array_equal(looked.vae.params.values, straight.vae.params.values)
    np.testing.assert_array_equal(looked.history, straight.history)
    assert looked.adam.t == straight.adam.t == 10


def test_they_are_found_once_a_step(ops, monkeypatch):
    t = trainer(ops)
    t.step()
    with estimated(t):
        first = t.vae.params.moving_statistics.copy()
    monkeypatch.setattr(statistics, "_mean", pytest.fail)
    with estimated(t):
        np.testing.assert_array_equal(t.vae.params.moving_statistics, first)


@pytest.fixture
def finished(ops, tmp_path, monkeypatch):
    """(run, trainer, the statistics that pictures were drawn with) of a run of five steps."""
    drawn = []
    monkeypatch.setattr(loop.figures, "draw_all", lambda _, vae, *__: drawn.append(vae.params.moving_statistics.copy()))
    run = Run.create(tmp_path / "run", "noise", config(steps=5))
    t = trainer(ops, np.float32, steps=5)
    loop.train(run, t, TEST)
    return run, t, drawn


def test_pictures_and_later_commands_use_them(ops, finished):
    run, t, drawn = finished
    with estimated(t):
        expected = t.vae.params.moving_statistics.copy()
    np.testing.assert_array_equal(drawn[-1], expected)
    later = trainer(ops, np.float32, seed=1).vae
    step, moving = checkpoint.load_model(run / "checkpoint.h5", later, run.config)
    assert step == 5
    np.testing.assert_array_equal(later.params.moving_statistics, expected)
    np.testing.assert_array_equal(moving, t.vae.params.moving_statistics)
    assert not np.array_equal(moving, expected)
    again = trainer(ops, np.float32, steps=5)
    checkpoint.load_training(run / "checkpoint.h5", again)
    np.testing.assert_array_equal(again.vae.params.moving_statistics, moving)


def test_a_checkpoint_of_an_earlier_version_has_none(ops, finished, monkeypatch, capsys):
    """It serves, with a word that the moving ones take their place."""
    run, t, _ = finished
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_estimated_arrays", lambda vae: {})
        checkpoint.save(run / "checkpoint.h5", t, run.config, 0)
    with h5py.File(run / "checkpoint.h5") as f:
        assert "estimated" not in f
    vae = trainer(ops, np.float32).vae
    checkpoint.load_model(run / "checkpoint.h5", vae, run.config)
    np.testing.assert_array_equal(vae.params.moving_statistics, t.vae.params.moving_statistics)
    assert "without statistics re-estimated for test mode" in capsys.readouterr().out
    checkpoint.load_training(run / "checkpoint.h5", trainer(ops, np.float32, steps=5))
