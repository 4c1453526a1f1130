"""Stops, kills and damage: what a run keeps, and what its user reads."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_train import config, trainer

from minivae.errors import UserError
from minivae.runs import Run
from minivae.train import train

ROOT = Path(__file__).parent.parent


@pytest.fixture
def digits(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (60, 8, 8, 1)).astype(np.uint8)
    np.savez(tmp_path / "digits.npz", train=images[:40], test=images[40:])
    return tmp_path


def start(folder, *arguments):
    return subprocess.Popen([sys.executable, ROOT / "run.py", *map(str, arguments)], cwd=folder, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def start_training(folder, **changes):
    options = {"--data": "digits.npz", "--steps": 100_000, "--batch-size": 8, "--log-every": 1, "--eval-every": 100_000,
               "--checkpoint-every": 2, "--out": "run"} | changes
    process = start(folder, *(word for pair in options.items() for word in pair))
    deadline = time.monotonic() + 60
    while not (folder / "run" / "checkpoint.h5").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_draws_and_says_how_to_go_on(digits, number):
    process = start_training(digits, **{"--checkpoint-every": 7})
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "resume run" in out and (digits / "run" / "samples.png").exists()
    done = len((digits / "run" / "metrics.csv").read_text().splitlines()) - 1
    resumed = start(digits, "resume", "run", "--steps", done + 2)
    out, err = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, err
    assert f"going on from update {done} " in out  # not one update lost
    check_rows(digits / "run", done + 2)


def check_rows(run, last):
    steps = [int(line.split(",")[0]) for line in (run / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == list(range(1, last + 1))


def kills(digits, count):
    """kill -9 at random moments while every second update is saved: each time, resume loses at most two updates."""
    rng = np.random.default_rng(0)
    process = start_training(digits)
    for _ in range(count):
        time.sleep(rng.uniform(0, 1.5))
        process.kill()
        process.communicate()
        made = len((digits / "run" / "metrics.csv").read_text().splitlines()) - 1
        process = start(digits, "resume", "run", "--steps", made + 400)
        line = process.stdout.readline()
        while line and "going on" not in line:
            line = process.stdout.readline()
        assert line, process.communicate()
        assert made - 2 <= int(line.split("update ")[1].split()[0]) <= made
    process.kill()
    process.communicate()
    process = start(digits, "resume", "run", "--steps", made + 6)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    check_rows(digits / "run", made + 6)


def test_kills(digits):
    kills(digits, 3)


@pytest.mark.long
def test_200_kills(digits):
    kills(digits, 200)


def test_a_second_process_is_refused(digits):
    process = start_training(digits)
    second = start(digits, "resume", "run")
    _, err = second.communicate(timeout=60)
    assert second.returncode == 2 and "another process" in err
    process.kill()
    process.communicate()


@pytest.fixture
def saved(ops, tmp_path):
    """A run with two checkpoints."""
    run = Run.create(tmp_path / "run", "x", config(steps=6))
    train(run, trainer(ops, np.float32, steps=6))
    return run


def load(ops, run):
    from minivae import checkpoint

    checkpoint.load_training(run / "checkpoint.h5", trainer(ops, np.float32))


def flips(ops, saved, count):
    path = saved / "checkpoint.h5"
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for place in [0, 300, 511, 512, len(whole) - 1, *rng.integers(len(whole), size=count)]:
        broken = bytearray(whole)
        broken[place] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        with pytest.raises(UserError, match="damaged.*checkpoint-previous.h5"):
            load(ops, saved)
    path.write_bytes(whole)
    load(ops, saved)


def test_any_flipped_byte_is_detected(ops, saved):
    flips(ops, saved, 20)


@pytest.mark.long
def test_500_flipped_bytes_are_detected(ops, saved):
    flips(ops, saved, 500)


def test_the_previous_checkpoint_is_whole(ops, saved):
    os.replace(saved / "checkpoint-previous.h5", saved / "checkpoint.h5")
    load(ops, saved)
    for cut in (0, 100, 600, 5000):
        (saved / "checkpoint.h5").write_bytes((saved / "checkpoint.h5").read_bytes()[:cut])
        with pytest.raises(UserError, match="train anew"):
            load(ops, saved)


def test_a_checkpoint_of_another_model_changes_nothing(ops, saved):
    from minivae import checkpoint

    other = trainer(ops, np.float32, latent=5)
    before = other.vae.params.values.copy()
    with pytest.raises(UserError, match="another model"):
        checkpoint.load_training(saved / "checkpoint.h5", other)
    np.testing.assert_array_equal(other.vae.params.values, before)


def test_a_failed_write_leaves_the_last_checkpoint(ops, saved, monkeypatch):
    from minivae import checkpoint

    before = (saved / "checkpoint.h5").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        checkpoint.save(saved / "checkpoint.h5", trainer(ops, np.float32), config(), 0)
    assert (saved / "checkpoint.h5").read_bytes() == before
    assert not (saved / "checkpoint.h5.part").exists()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_loss_that_is_not_finite_stops_the_run(ops, tmp_path):
    run = Run.create(tmp_path / "run", "x", config(checkpoint_every=1))
    t = trainer(ops, np.float32)

    def explode():
        t.update()
        if t.step_count == 4:
            t.vae.params.values[:] = np.nan

    t._update = explode
    with pytest.raises(UserError, match="update 6 is not finite.*--lr"):
        train(run, t)
