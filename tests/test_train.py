"""Training: a golden trace, the same bits from the same seed, another dtype, 16 images learnt by heart, resuming."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minivae.images.data import Dataset, Split
from minivae.training import checkpoint, loop
from minivae.training.loop import Trainer
from minivae.training.runs import Config, Run
from minivae.vae import Widths

TRACE = [49.0512498601, 46.0911752976, 48.0796871059, 48.2958781906, 48.8598821083,
         46.0321331987, 51.5562371972, 48.6044718555, 47.4751220418, 44.8781510469]


def dataset(count=100, shape=(8, 8, 3)):
    images = np.random.RandomState(5).randint(0, 256, (count + 30, *shape)).astype(np.uint8)
    return Dataset("noise", Split(images[:count], None, "a"), Split(images[count:], None, "b"), [])


def config(**changes):
    values = dict(data="noise", steps=10, batch_size=16, latent=4, lr=1e-3, seed=0, kl="sample", log_every=4,
                  eval_every=5, checkpoint_every=3, shape=(8, 8, 3), train_sha256="a", test_sha256="b")
    return Config(**values | changes)


def trainer(ops, dtype=np.float64, data=None, **changes):
    return Trainer(config(**changes), data or dataset(), ops, dtype, Widths((4, 5, 6), 7, (8, 6, 5)))


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
    first = t.index.copy()
    assert all(len(set(row)) == 16 for row in first.tolist())
    assert 0 <= first.min() and first.max() < 100 and not (first[0] == first[1]).all()
    for _ in range(4):
        t.step()
    assert not (t.index == first).any(1).all()


@pytest.mark.parametrize("kl", ["sample", "analytic"])
def test_overfits_16_images(ops, kl):
    t = Trainer(config(kl=kl, lr=1e-2), dataset(16), ops, np.float32, Widths((8, 16, 32), 64, (64, 32, 16)))
    first = np.mean(losses(t, 4))
    for _ in range(200):
        t.step()
    rec, _ = t.train_losses()
    assert rec < first / 4


def test_test_losses_by_hand(ops):
    """A mean over images, whatever the batches; nothing in the model moves."""
    t = trainer(ops)
    t.step()
    moving = t.vae.params.moving_statistics.copy()
    found = t.test_losses()
    np.testing.assert_array_equal(found, t.test_losses())
    np.testing.assert_array_equal(t.vae.params.moving_statistics, moving)
    x = t.test_images / 255 * 2 - 1
    eps = np.zeros((30, 4))
    ops.normal(0, 2, np.zeros(1, np.int64), eps)
    rec, kl = t.vae.forward(x, eps, train=False)
    np.testing.assert_allclose(found, [rec.mean(), kl.mean()], rtol=1e-12)


def test_resuming_gives_the_same_bits(ops, tmp_path):
    """Ten updates straight, and ten with a stop after the checkpoint of update 6: parameters, Adam, rows of metrics."""
    straight = Run.create(tmp_path / "a", "x", config())
    whole = trainer(ops, np.float32)
    loop.train(straight, whole)

    broken = Run.create(tmp_path / "b", "x", config(steps=8))  # rows and a checkpoint after 6 that must not survive
    loop.train(broken, trainer(ops, np.float32, steps=8))
    first = trainer(ops, np.float32)
    for _ in range(6):
        first.step()
    checkpoint.save(broken / "checkpoint.h5", first, config(), 1.5)

    second = trainer(ops, np.float32)
    assert checkpoint.load_training(broken / "checkpoint.h5", second) == 1.5
    broken.config.steps = 10
    broken.forget_after(6)
    loop.train(broken, second)
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
from test_train import config, trainer

def resident():
    gc.collect()
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize()

def counted():
    update()
    if t.step_count + 1 in (200, 2000):
        sizes.append(resident())

loop.figures.draw_all = lambda *_: None
run = Run.create(Path(sys.argv[1]), "x", config(steps=2000, log_every=50, eval_every=50, checkpoint_every=50))
t, sizes = trainer(numpy_ops, np.float32, log_every=50), []
update, t._update = t._update, counted
loop.train(run, t)
print(*sizes)
"""


def test_long_runs_need_no_more_memory(tmp_path):
    """The process after 2,000 updates, with a line, an evaluation and a checkpoint every 50, against after 200.

    One of its own: in the tests' the allocator still moves what other tests left.
    """
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    output = subprocess.run([sys.executable, "-c", LONG_RUN, tmp_path / "run"], cwd=Path(__file__).parent, env=env,
                            text=True, capture_output=True, check=True).stdout
    early, late = map(int, output.splitlines()[-1].split())
    print(f"resident memory after 200 updates {early:,} bytes, after 2,000 {late:,}")
    assert late - early < 2**20
