"""Training: a golden trace, the same bits from the same seed, another dtype, 16 images learnt by heart, resuming."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from minivae.images import data
from minivae.images.data import Dataset, Split
from minivae.ops import philox
from minivae.sigmas import FITTED_SIGMAS
from minivae.training import checkpoint, loop
from minivae.training.evaluation import Evaluation
from minivae.training.runs import Run
from minivae.training.settings import Config
from minivae.training.trainer import Trainer
from minivae.vae import Widths

TRACE = [49.0512498601, 46.0911752976, 48.0796871059, 48.2958781906, 48.8598821083,
         46.0321331987, 51.5562371972, 48.6044718555, 47.4751220418, 44.8781510469]


def dataset(count=100, shape=(8, 8, 3)):
    images = np.random.RandomState(5).randint(0, 256, (count + 30, *shape)).astype(np.uint8)
    return Dataset("noise", Split(images[:count], None, "a"), Split(images[count:], None, "b"), [])


TEST = dataset().test.images


def config(**changes):
    values = dict(data="noise", steps=10, batch_size=16, latent=4, lr=1e-3, seed=0, kl="sample", log_every=4,
                  eval_every=5, checkpoint_every=3, shape=(8, 8, 3), train_sha256="a", test_sha256="b")
    return Config(**values | changes)


def trainer(ops, dtype=np.float64, images=None, **changes):
    images = dataset().train.images if images is None else images
    return Trainer(config(**changes), images, ops, dtype, Widths((4, 5, 6), 7, (8, 6, 5)))


def losses(trainer, steps=10):
    rows = []
    for step in range(steps):
        trainer.step()
        rows.append(trainer.history[step % 4].sum())
    return rows


def test_golden_trace(ops):
    np.testing.assert_allclose(losses(trainer(ops)), TRACE, rtol=1e-8)


def test_another_dtype_gives_the_same_trace(ops):
    np.testing.assert_allclose(losses(trainer(ops, np.float32)), TRACE, rtol=1e-4)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(ops):
    a, b, c = (trainer(ops, np.float32, seed=seed) for seed in (3, 3, 4))
    assert losses(a) == losses(b) != losses(c)
    np.testing.assert_array_equal(a.vae.params.values, b.vae.params.values)
    np.testing.assert_array_equal(a.vae.params.moving_statistics, b.vae.params.moving_statistics)


def test_batches_are_drawn_without_replacement_and_anew(ops):
    t = trainer(ops)
    t.step()
    first = t.batches.index.copy()
    assert all(len(set(row)) == 16 for row in first.tolist())
    assert 0 <= first.min() and first.max() < 100 and not (first[0] == first[1]).all()
    for _ in range(4):
        t.step()
    assert not (t.batches.index == first).any(1).all()


@pytest.mark.parametrize("sigma", [1.0, *FITTED_SIGMAS])
def test_fitted_sigmas_train_on_dequantized_pixels(ops, sigma):
    """The noise is new at each step, and uniform; a fixed sigma trains on grey levels."""
    t = trainer(ops, sigma=sigma)
    found = []
    for _ in range(2):
        t.step()
        levels = (t.x + 1) * 127.5
        found.append(levels - np.round(levels))
    if sigma == 1:
        np.testing.assert_allclose(found, 0, atol=1e-12)
    else:
        assert np.isclose(*found).mean() < 0.01
        assert stats.kstest(np.ravel(found), stats.uniform(-0.5, 1).cdf).pvalue > 1e-3


@pytest.mark.parametrize("sigma", FITTED_SIGMAS)
def test_a_fitted_sigmas_test_loss_is_of_dequantized_pixels(ops, sigma):
    t = trainer(ops, sigma=sigma)
    x = TEST / 127.5 - 1
    noise = philox.uniforms(3, philox.STREAMS["test pixels"], 0, x.size).reshape(x.shape)
    eps = philox.normals(3, philox.STREAMS["test"], 0, 4 * len(x)).reshape(-1, 4)
    losses = t.vae.forward(x + (noise - 0.5) / 127.5, eps, train=False)
    expected = np.mean(losses, 1)
    np.testing.assert_allclose(Evaluation(t.vae, TEST, 3).losses(), expected, rtol=1e-12)


@pytest.mark.parametrize("sigma", FITTED_SIGMAS)
def test_black_images_are_a_start_too(ops, sigma):
    t = trainer(ops, images=np.zeros((20, 8, 8, 3), np.uint8), sigma=sigma)
    assert np.isfinite(losses(t, 3)).all() and np.isfinite(t.vae.params.values).all()


def test_a_learned_sigma_starts_near_the_images_spread(ops):
    images = np.clip(np.random.RandomState(0).normal(128, 20, (50, 8, 8, 3)), 0, 255).astype(np.uint8)
    t = trainer(ops, images=images, sigma="learned")
    assert np.exp(t.vae.likelihood.log_sigma.value[0]) == pytest.approx(20 / 127.5, rel=0.05)


@pytest.mark.parametrize("kl", ["sample", "analytic"])
def test_overfits_16_images(ops, kl):
    images, widths = dataset(16).train.images, Widths((8, 16, 32), 64, (64, 32, 16))
    t = Trainer(config(kl=kl, lr=1e-2), images, ops, np.float32, widths)
    first = np.mean(losses(t, 4))
    for _ in range(200):
        t.step()
    rec, _ = t.losses()
    assert rec < first / 4


@pytest.mark.parametrize("seed", [0, 3])
def test_an_evaluation_by_hand(ops, seed):
    """A mean over 450 images, in batches of 200 with noise of their own; nothing in the model changes."""
    t = trainer(ops)
    t.step()
    images = np.random.RandomState(6).randint(0, 256, (450, 8, 8, 3)).astype(np.uint8)
    evaluation, values = Evaluation(t.vae, images, seed), t.vae.params.values.copy()
    moving = t.vae.params.moving_statistics.copy()
    found = evaluation.losses()
    np.testing.assert_array_equal(found, evaluation.losses())
    np.testing.assert_array_equal(t.vae.params.moving_statistics, moving)
    np.testing.assert_array_equal(t.vae.params.values, values)
    losses = []
    for batch, part in enumerate((images[:200], images[200:400], images[400:])):
        eps = philox.normals(seed, philox.STREAMS["test"], batch, 4 * len(part)).reshape(-1, 4)
        losses.append(np.stack(t.vae.forward(part / 255 * 2 - 1, eps, train=False)))
    np.testing.assert_allclose(found, np.concatenate(losses, 1).mean(1), rtol=1e-12)


def test_the_test_images_are_the_reference_s():
    np.testing.assert_array_equal(data.test_rows(6000), np.random.RandomState(0).permutation(6000)[:5000])
    assert sorted(data.test_rows(7)) == list(range(7))


@pytest.mark.parametrize("lr", [1e-3, 1e-2])
def test_the_learning_rate_is_the_first_step_s_length(ops, lr):
    """Adam's first step moves a weight with a gradient far above eps by lr."""
    t = trainer(ops, lr=lr)
    before = t.vae.params.values.copy()
    t.step()
    assert np.abs(t.vae.params.values - before).max() == pytest.approx(lr, rel=1e-3)


def test_the_learning_rate_falls_in_the_last_quarter(ops):
    """In 100 treads, so it is never quite lr_end; after the last step it stays there. A step is as long as its rate."""
    t = trainer(ops, steps=20, lr_end=1e-4)
    rates, moved = [], []
    for _ in range(22):
        before = t.vae.params.values.copy()
        t.step()
        rates.append(t.adam.lr[0])
        corrected = math.sqrt(1 - 0.999**t.step_count) / (1 - 0.5**t.step_count)
        direction = corrected * t.adam.m / (np.sqrt(t.adam.v) + 1e-8)
        moved.append(((before - t.vae.params.values) @ direction) / (direction @ direction))
    expected = [1e-3] * 15 + [1e-3 - 9e-4 * i / 5 for i in range(5)] + [1e-4] * 2
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    np.testing.assert_allclose(moved, expected, rtol=1e-6)
    assert trainer(ops, steps=1000, lr_end=0.0).config.learning_rate(757) == 1e-3 - 1e-3 * 0.02


def test_going_back_takes_the_rates_of_then(ops, tmp_path):
    t = trainer(ops, np.float32, steps=8, lr_end=0.0)
    checkpoint.save(tmp_path / "checkpoint.h5", t, t.config, 0)
    expected = losses(t, 8)
    checkpoint.load_training(tmp_path / "checkpoint.h5", t)
    assert losses(t, 8) == expected


def test_a_longer_run_falls_later(ops):
    t = trainer(ops, steps=8, lr_end=0.0)
    losses(t, 8)
    assert t.adam.lr[0] == 5e-4
    t.config.steps = 20
    t.step()
    assert t.adam.lr[0] == 1e-3


@pytest.mark.parametrize("lr_end, expected", [(1e-3, 2e-3), (0.0, 0.0), (1e-4, 2e-4)])
def test_another_rate_from_a_step_on(ops, lr_end, expected):
    """A constant rate stays constant; what was changed, and when, can be read again."""
    t = trainer(ops, steps=20, lr_end=lr_end)
    losses(t, 3)
    t.config.change_rate(3, 2e-3)
    t.step()
    assert t.adam.lr[0] == 2e-3 and t.config.lr_end == pytest.approx(expected, rel=1e-12)
    t.config.change_rate(4, 1e-4)
    assert Config.parse(json.dumps(vars(t.config))).earlier_rates == [[3, 1e-3], [4, 2e-3]]
    assert t.config.learning_rate(15) == 1e-4


def test_a_configuration_without_lr_end_has_a_constant_rate():
    settings = vars(config(lr=0.02))
    del settings["lr_end"]
    old = Config.parse(json.dumps(settings))
    assert [old.learning_rate(step) for step in range(10)] == [0.02] * 10


def test_a_row_of_metrics(ops, tmp_path):
    """Its training losses are the mean since the last line was due, its test losses the evaluation's."""
    run, t = Run.create(tmp_path / "run", "x", config(steps=4)), trainer(ops, steps=4)
    loop.train(run, t, TEST, seconds=1000)
    (row,) = run.metrics()
    rec, kl = Evaluation(t.vae, TEST, 0).losses()
    assert row["step"] == 4 and 1000 < row["seconds"] < 1100
    assert [row["test_loss"], row["test_rec"], row["test_kl"]] == pytest.approx([rec + kl, rec, kl], abs=1e-4)
    assert row["train_loss"] == pytest.approx(np.mean(TRACE[:4]), abs=1e-4)
    assert row["train_loss"] == pytest.approx(row["train_rec"] + row["train_kl"], abs=2e-4)
    assert 1000 < checkpoint.load_training(run / "checkpoint.h5", t) < 1100


@pytest.mark.parametrize("lr_end", [1e-3, 0.0], ids=["constant", "falling"])
def test_resuming_gives_the_same_bits(ops, tmp_path, lr_end):
    """Ten steps straight, and ten with a stop after the checkpoint of step 6: parameters, Adam, rows of metrics."""
    straight = Run.create(tmp_path / "a", "x", config(lr_end=lr_end))
    whole = trainer(ops, np.float32, lr_end=lr_end)
    loop.train(straight, whole, TEST)

    # rows and a checkpoint after 6 that must not survive
    broken = Run.create(tmp_path / "b", "x", config(steps=8, lr_end=lr_end))
    loop.train(broken, trainer(ops, np.float32, steps=8, lr_end=lr_end), TEST)
    first = trainer(ops, np.float32, lr_end=lr_end)
    for _ in range(6):
        first.step()
    checkpoint.save(broken / "checkpoint.h5", first, config(lr_end=lr_end), 1.5)

    second = trainer(ops, np.float32, lr_end=lr_end)
    assert checkpoint.load_training(broken / "checkpoint.h5", second) == 1.5
    broken.config.steps = 10
    broken.forget_after(6)
    loop.train(broken, second, TEST)
    for name in ("values", "moving_statistics"):
        np.testing.assert_array_equal(getattr(whole.vae.params, name), getattr(second.vae.params, name))
    np.testing.assert_array_equal(whole.adam.v, second.adam.v)
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in run.metrics()] for run in (straight, broken)]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == [4, 5, 8, 10]


LONG_RUN = """
import gc, resource, sys
from pathlib import Path
import numpy as np
from minivae.training import loop
from minivae.ops import numpy_ops
from minivae.training.runs import Run
from test_train import TEST, config, trainer

def resident():
    gc.collect()
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize()

def counted():
    step()
    if t.step_count + 1 in (200, 2000):
        sizes.append(resident())

loop.figures.draw_all = lambda *_: None
run = Run.create(Path(sys.argv[1]), "x", config(steps=2000, log_every=50, eval_every=50, checkpoint_every=50))
t, sizes = trainer(numpy_ops, np.float32, log_every=50), []
step, t._step = t._step, counted
loop.train(run, t, TEST)
print(*sizes)
"""


def test_long_runs_need_no_more_memory(tmp_path):
    """The process after 2,000 steps, with a line, an evaluation and a checkpoint every 50, against after 200.

    One of its own: in the tests' the allocator still moves what other tests left.
    """
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    output = subprocess.run([sys.executable, "-c", LONG_RUN, tmp_path / "run"], cwd=Path(__file__).parent, env=env,
                            text=True, capture_output=True, check=True).stdout
    early, late = map(int, output.splitlines()[-1].split())
    print(f"resident memory after 200 steps {early:,} bytes, after 2,000 {late:,}")
    assert late - early < 2**20


def test_what_is_no_step_is_not_taken_for_one(ops, tmp_path, monkeypatch, capsys):
    """A clock that the steps and all else move: the time of a step is that of the steps alone."""
    now = [0.0]

    def takes(seconds, result=None):
        def call(*_):
            now[0] += seconds
            return result

        return call

    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(loop.figures, "draw_all", takes(100))
    monkeypatch.setattr(loop.checkpoint, "save", takes(30))
    monkeypatch.setattr(Evaluation, "losses", takes(70, (1.0, 1.0)))
    for steps, told in (31, True), (loop.TIMED, False):
        changes = dict(steps=steps, eval_every=4, checkpoint_every=3)
        t = trainer(ops, **changes)
        step = t._step
        t._step = lambda step=step: (step(), takes(0.25)())
        loop.train(Run.create(tmp_path / f"run{steps}", "x", config(**changes)), t, TEST)
        out = capsys.readouterr().out
        assert ("a step takes 0.25 s: about 00:02 for the 11 steps that are left" in out) == told
        assert ("a step takes" in out) == told
