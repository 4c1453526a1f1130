"""What a run says of its memory, and what is refused before anything of it is made."""

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from test_cli import refused, run
from test_train import config

from minivae.errors import UserError
from minivae.ops import numpy_ops
from minivae.training import cost
from minivae.vae import VAE

MEASURED = """
import re, sys
import run
run.main(sys.argv[1:])
print("peak", 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]))
"""


@pytest.mark.parametrize("shape, latent", [((32, 32, 3), 10), ((64, 32, 1), 3), ((8, 8, 3), 500)])
def test_the_number_of_parameters(shape, latent):
    count = sum(p.value.size for p in VAE(shape, latent, numpy_ops).params.trained)
    assert cost.parameters(config(shape=shape, latent=latent)) == pytest.approx(count, rel=0.03)


@pytest.mark.parametrize("side, batch, megabytes", [(32, 64, 402), (64, 16, 735)])
def test_what_a_process_takes(tmp_path, side, batch, megabytes):
    images = np.random.default_rng(0).integers(0, 256, (300, side, side, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    command = [sys.executable, "-c", MEASURED, "--data", "a.npz", "--steps", "3", "--batch-size", str(batch)]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
                          text=True, capture_output=True, check=True)
    assert f"about {megabytes} MB of memory; two checkpoints" in done.stdout
    assert int(done.stdout.split()[-1]) == pytest.approx(1e6 * megabytes, rel=0.2)
    (saved,) = tmp_path.glob("runs/a-1/checkpoint.h5")
    told = float(done.stdout.split("two checkpoints of ")[1].split()[0])
    assert saved.stat().st_size == pytest.approx(1e6 * told, rel=0.03)


@pytest.mark.parametrize("ops_of", ["cpu", "gpu"])
def test_memory_is_told_before_it_is_taken(monkeypatch, ops_of):
    images = np.zeros((10, 32, 32, 3), np.uint8)
    settings = config(shape=(32, 32, 3), latent=10)
    line = cost.told(settings, images, images, numpy_ops)
    need = 1e6 * float(line.split("about ")[1].split(" MB")[0].replace(",", ""))

    def told(room):
        monkeypatch.setattr(cost, "memory", lambda: room if ops_of == "cpu" else 0)
        free = math.inf if ops_of == "cpu" else room
        return cost.told(settings, images, images, SimpleNamespace(free_memory=lambda: free))

    assert told(4.1 * need) == line and "of what there is" not in line
    assert "MB of memory, 50% of what there is; two checkpoints" in told(2 * need)
    with pytest.raises(UserError, match="would take about .* MB of memory, and there are .*--size.*--batch-size"):
        told(0.9 * need)


def test_a_batch_too_large_for_the_memory(tmp_path, monkeypatch):
    """Nothing is made of the model, nor of its run; a run that came from a larger machine is not resumed either."""
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "a.npz", train=images[:50], test=images[50:])
    assert run("--data", "a.npz", "--steps", 1, "--out", "run", cwd=tmp_path).returncode == 0
    monkeypatch.setattr(cost, "memory", lambda: 2e8)
    monkeypatch.setattr("minivae.training.trainer.Trainer.__init__", None)
    for command in (["--data", "a.npz"], ["resume", "run", "--steps", 2]):
        refused(*command, cwd=tmp_path, says="MB of memory, and there are 200;")
    assert not (tmp_path / "runs").exists()


def test_photographs_too_many_for_the_memory(tmp_path, rng, monkeypatch):
    """Told after the first, not when the memory is full."""
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / f"{i:02}.png")
    rooms = iter([20 * 16 * 16 * 3 - 1, 20 * 16 * 16 * 3])
    monkeypatch.setattr("minivae.images.folder.memory", lambda: next(rooms))
    refused("--data", tmp_path, cwd=tmp_path, says="does not fit in memory; write its images into an .h5")
    assert run("--data", tmp_path, "--steps", 1, "--out", tmp_path / "run", cwd=tmp_path).returncode == 0
