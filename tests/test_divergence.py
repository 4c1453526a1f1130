"""Losses that are finite and far from where they were: which of them are warned of, and what is not."""

import numpy as np
import pytest
from test_train import TEST, config, trainer

from minivae.training import loop
from minivae.training.divergence import Divergence
from minivae.training.runs import Run


@pytest.mark.parametrize("losses, expected", [
    ([700, 90, 60, 42, 419, 421, 60], [0, 0, 0, 0, 0, 1, 0]),  # ten times the best, not the last
    ([520, 5000, 385310, 321228], [0, 0, 1, 1]),  # in the first window already
    ([1500, 300, 12, -0.5, -40, -3000, -2000, 900, 1806, 1808], [0] * 9 + [1]),  # sigma is fitted: past zero
    ([-100, 250, 150, 208, -90], [0, 1, 0, 1, 0]),
    ([300, 0.2, 9, 320, 606, 608], [0, 0, 0, 0, 0, 1]),  # constant images
])
def test_diverged_losses(losses, expected):
    found = Divergence(3072)
    assert [found.diverged(loss) for loss in losses] == expected
    rest = Divergence(3072, losses[:-1])
    assert rest.diverged(losses[-1]) == expected[-1]


def run_with_losses(ops, path, monkeypatch, losses, **changes):
    """A run in which the mean losses since the last line are given ones, by step."""
    t = trainer(ops, np.float32, **changes)
    t.losses = lambda: (losses[t.step_count], 0.0)
    monkeypatch.setattr(loop.figures, "draw_all", lambda *_: None)
    return loop.train(Run.create(path, "x", config(**changes)), t, TEST)


@pytest.mark.parametrize("at, said", [(4, "was 50.00 nats/image and is 501.00, the mean of 4 steps"), (5, None),
                                      (8, "was 40.00 nats/image and is 501.00")])
def test_a_whole_window_is_warned_of_once(ops, tmp_path, monkeypatch, capsys, at, said):
    """Not a line that an evaluation makes of fewer steps."""
    losses = dict.fromkeys(range(13), 40.0) | {1: 50.0, at: 501.0, 12: 600.0 if at == 4 else 40.0}
    run_with_losses(ops, tmp_path / "run", monkeypatch, losses, steps=12, eval_every=5)
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert len(warnings) == (said is not None)
    assert all(said in line and "a smaller --lr usually helps" in line for line in warnings)


@pytest.mark.parametrize("lr, warned", [(1e-3, False), (1000, True)])
def test_a_learning_rate_that_is_far_too_large(ops, tmp_path, capsys, lr, warned):
    run = Run.create(tmp_path / "run", "x", config(steps=40, lr=lr))
    loop.train(run, trainer(ops, np.float32, steps=40, lr=lr), TEST)
    assert ("warning: training diverges" in capsys.readouterr().out) == warned


def test_a_resumed_run_knows_its_best(ops, tmp_path, monkeypatch, capsys):
    """From its metrics: the first window after it is held against what was before."""
    run = Run.create(tmp_path / "run", "x", config())
    run.log({"step": 4, "seconds": 1.0, "train_loss": 40.0})
    t = trainer(ops, np.float32)
    t.step_count = 4
    t.losses = lambda: (401.0, 0.0)
    monkeypatch.setattr(loop.figures, "draw_all", lambda *_: None)
    loop.train(run, t, TEST)
    assert "its loss was 40.00 nats/image and is 401.00" in capsys.readouterr().out
