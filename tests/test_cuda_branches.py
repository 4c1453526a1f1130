"""Branches of the recorded step: two launches of which neither waits for the other never touch what the other writes.

benchmarks/launches.py stands in for the card: a replay runs the launches in any order that their waits allow.
"""

import itertools

import numpy as np
import pytest
from emulator import emulator
from launches import Recorder, ops_on
from test_train import config, dataset

from minivae.ops import cuda_module
from minivae.training.trainer import Trainer
from minivae.vae import Widths

WIDTHS = Widths((4, 8, 12), 8, (8, 12, 4))


@pytest.fixture(autouse=True)
def on_the_emulator():
    if emulator.WHY_NOT:
        pytest.skip(emulator.WHY_NOT)
    with emulator.lane_order(2):
        yield


def trained(seed, steps=1, labels=None, **changes):
    """(what was recorded, the Trainer) after a step launch by launch and `steps` replays."""
    recorder = Recorder(emulator.RawModule, seed)
    t = Trainer(config(**changes), dataset().train.images, ops_on(recorder), np.float32, WIDTHS, labels)
    t.check_each = False  # as on a GPU
    for _ in range(1 + steps):
        t.step()
    return recorder, t


def conflicts(recorder):
    """Pairs (name, name) of launches that may run at the same time though one writes what the other touches."""
    before = recorder.ancestors()
    found = set()
    for (i, a), (j, b) in itertools.combinations(enumerate(recorder.launches), 2):
        reads_a, writes_a = a.kernel.reads_and_writes(a.args)
        reads_b, writes_b = b.kernel.reads_and_writes(b.args)
        if i not in before[j] and (overlap(writes_a, reads_b + writes_b) or overlap(writes_b, reads_a)):
            found.add((a.name, b.name))
    return found


def overlap(some, others):
    return any(np.may_share_memory(a, b) for a, b in itertools.product(some, others))


@pytest.mark.parametrize("sigma", ["1", "optimal", "learned", "pixel", "spectrum"])
def test_branches_do_not_touch_what_others_write(sigma):
    recorder, _ = trained(0, sigma=sigma)
    assert conflicts(recorder) == set()


def test_nor_do_they_with_labels():
    recorder, t = trained(0, labels=(np.arange(100) % 2).astype(np.int32), label_names=["a", "b"])
    assert {"take_labels", "append_label"} <= {launch.name for launch in recorder.launches}
    assert conflicts(recorder) == set()
    np.testing.assert_array_equal(t.labels, t.batches.index[1] % 2)  # the replayed step's


def test_the_branches_are_there():
    """Launches that may run beside each other: a weight's gradient beside the next layer's, heads, Adam, the noise."""
    recorder, _ = trained(0)
    before = recorder.ancestors()
    names = [launch.name.partition(",")[0] for launch in recorder.launches]
    pairs = {tuple(sorted((names[i], names[j]))) for i, j in itertools.combinations(range(len(names)), 2)
             if i not in before[j]}
    assert pairs >= {("gather", "normal"), ("product<CONV", "product<CONV"), ("product<CONV_DW", "product<CONV_DX"),
                     ("adam<4>", "product<CONV_DX"), ("adam<4>", "record")}


@pytest.mark.parametrize("fault", ["no join", "shared scratch"])
def test_a_fault_is_seen(monkeypatch, fault):
    if fault == "no join":
        monkeypatch.setattr(Trainer, "update_beside", update_without_waiting)
    else:
        monkeypatch.setattr(cuda_module, "_scratch", OneScratch())
    recorder, _ = trained(0)
    assert conflicts(recorder)


def update_without_waiting(trainer, first=None):
    with trainer.ops.branch("adam"):
        trainer.adam.update(first)


class OneScratch(dict):
    """Scratch that all branches share."""

    def setdefault(self, name, buffers):
        return super().setdefault(None, buffers)


def test_any_order_gives_the_same_bits():
    expected = None
    for seed in range(3):
        _, t = trained(seed, steps=3)
        found = [t.vae.params.values, t.adam.m, t.adam.v, t.vae.params.moving_statistics, t.history]
        expected = expected or [a.copy() for a in found]
        for mine, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert int(t.adam.t[0]) == 4
