"""What only a GPU can show: python -m pytest -m gpu. Single operations are in test_cuda_ops and test_cuda_conv."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rounded import Rounded

from minivae import checks
from minivae.errors import UserError
from minivae.ops import cuda_module, cuda_ops, numpy_ops
from minivae.training import checkpoint
from minivae.training.evaluation import Evaluation
from minivae.training.runs import Run
from minivae.training.settings import Config
from minivae.training.trainer import Trainer

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parent.parent
SIGMAS = ["1", "optimal", "learned", "pixel", "spectrum"]


@pytest.fixture(autouse=True)
def gpu():
    """fp32, unless a test chooses otherwise."""
    try:
        cuda_module.require_gpu("fp32")
    except UserError as e:
        pytest.skip(str(e))
    yield
    cuda_module.set_precision("tf32")


def trainer(ops, dtype=np.float32, **changes):
    """The reference's model and batch on random images."""
    images = np.random.RandomState(5).randint(0, 256, (500, 32, 32, 3)).astype(np.uint8)
    values = dict(data="noise", steps=100, batch_size=64, latent=10, lr=1e-3, seed=0, kl="sample", log_every=100,
                  eval_every=1000, checkpoint_every=1000, shape=(32, 32, 3), train_sha256="a", test_sha256="b")
    return Trainer(Config(**values | changes), images, ops, dtype)


def state(t):
    """Every array that an update leaves behind, by name."""
    vae, host = t.vae, t.ops.to_host
    e, g = vae.encoder, vae.generator
    blocks = {"conv1": e.conv1, "conv2": e.conv2, "conv3": e.conv3, "dense": e.dense, "mean": e.mean, "var": e.var,
              "gen/dense": g.dense, "tconv1": g.tconv1, "tconv2": g.tconv2}
    arrays = {"x": t.x, "eps": t.eps}
    for name, block in blocks.items():
        arrays |= {f"{name} before batch norm": block.norm.x, f"{name} moments": block.norm.moments}
    arrays |= {"z": vae.posterior.z, "x_hat": vae.likelihood.x_hat}
    arrays |= {f"d {p.name}": p.grad for p in reversed(vae.params.trained)}
    arrays |= {p.name: p.value for p in vae.params.state}
    return {name: np.array(host(array)) for name, array in arrays.items()}


@pytest.mark.parametrize("precision, dtype, tolerance", [
    ("fp32", np.float64, 1e-9), ("fp32", np.float32, 1e-4), ("tf32", np.float32, 0.02)])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_first_update_layer_by_layer(sigma, precision, dtype, tolerance):
    """In Frobenius norms; a gradient's error is measured against a thousandth of the whole gradient at least, since
    some are all but zero: those of a beta whose layer's output is centred again. In tf32 the reference rounds factors
    as the kernels do; a factor's last bit differs now and then, and a unit near 0 whose leaky ReLU turns over.
    """
    cuda_module.set_precision(precision)
    found = []
    for ops in (Rounded() if precision == "tf32" else numpy_ops, cuda_ops):
        t = trainer(ops, dtype, sigma=sigma)
        t.step()
        found.append(state(t))
    mine, theirs = found[1], found[0]
    whole = np.linalg.norm([np.linalg.norm(a) for name, a in theirs.items() if name.startswith("d ")])
    for name, expected in theirs.items():
        size = np.linalg.norm(expected) + (whole / 1000 if name.startswith("d ") else 1e-12)
        assert np.linalg.norm(mine[name] - expected) <= tolerance * size, name


@pytest.mark.parametrize("precision, tolerance", [("fp32", 5e-3), ("tf32", 2e-2)])
def test_a_hundred_updates_find_the_cpu_s_losses(precision, tolerance):
    cuda_module.set_precision(precision)
    losses = []
    for ops in (numpy_ops, cuda_ops):
        t = trainer(ops)
        for _ in range(100):
            t.step()
        losses.append(t.ops.to_host(t.history).sum(1))
    np.testing.assert_allclose(losses[1][:10], losses[0][:10], rtol=tolerance)
    np.testing.assert_allclose(losses[1].mean(), losses[0].mean(), rtol=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_two_runs_give_the_same_bits(precision):
    cuda_module.set_precision(precision)
    values = []
    for _ in range(2):
        t = trainer(cuda_ops)
        for _ in range(100):
            t.step()
        values.append(t.ops.to_host(t.vae.params.values))
    np.testing.assert_array_equal(*values)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_a_replayed_graph_does_what_the_launches_do(sigma):
    cuda_module.set_precision("tf32")
    replayed, launched = (trainer(cuda_ops, sigma=sigma, steps=30, lr_end=0.0) for _ in range(2))
    launched._step = launched.device_step
    for t in (replayed, launched):
        for step in range(30):
            t.step()
            if step == 10:
                Evaluation(t.vae, t.batches.images[:100], 0).losses()  # other shapes between two replays
    for name in ("values", "grads", "moving_statistics"):
        a, b = (cuda_ops.to_host(getattr(t.vae.params, name)) for t in (replayed, launched))
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(*(cuda_ops.to_host(t.history) for t in (replayed, launched)))
    assert int(replayed.adam.t[0]) == 30


def test_images_streamed_from_pinned_memory_give_the_same_bits(monkeypatch):
    held = trainer(cuda_ops, log_every=10)
    monkeypatch.setattr(cuda_ops, "free_memory", lambda: 0)
    streamed = trainer(cuda_ops, log_every=10)
    assert len(streamed.batches.device_images) == 10 * 64
    for t in (held, streamed):
        for _ in range(95):
            t.step()
    np.testing.assert_array_equal(*(cuda_ops.to_host(t.vae.params.values) for t in (held, streamed)))


def test_gradients():
    assert checks.run(cuda_ops)


@pytest.mark.parametrize("first, second", [(numpy_ops, cuda_ops), (cuda_ops, numpy_ops)], ids=["to GPU", "to CPU"])
def test_a_checkpoint_crosses_devices(tmp_path, first, second):
    run = Run.create(tmp_path / "run", "x", trainer(first).config)
    a, b = trainer(first), trainer(second)
    for _ in range(5):
        a.step()
    checkpoint.save(run / "checkpoint.h5", a, run.config, 0)
    checkpoint.load_training(run / "checkpoint.h5", b)
    for name, array in checkpoint.training_arrays(a).items():
        np.testing.assert_array_equal(second.to_host(checkpoint.training_arrays(b)[name]), first.to_host(array), name)
    for t in (a, b):
        for _ in range(3):
            t.step()
    np.testing.assert_allclose(b.losses(), a.losses(), rtol=1e-3)


def command(folder, *arguments, before=()):
    done = subprocess.run([*before, sys.executable, ROOT / "run.py", *map(str, arguments)], cwd=folder,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture
def digits(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (60, 16, 16, 3)).astype(np.uint8)
    np.savez(tmp_path / "digits.npz", train=images[:40], test=images[40:])
    return tmp_path


def test_every_command(digits):
    """CPU, then GPU, then CPU again in one run; and all that can be done with it."""
    options = "--batch-size", 8, "--log-every", 2, "--out", "run"
    command(digits, "--data", "digits.npz", "--steps", 4, *options)
    command(digits, "resume", "run", "--steps", 9, "--gpu")
    command(digits, "resume", "run", "--steps", 12)
    for name in ("sample", "reconstruct", "interpolate"):
        command(digits, name, "run", "--gpu", "--precision", "fp32")
    command(digits, "evaluate", "run", "--gpu", "--images", 8, "--importance", 4, "--ais-images", 2, "--ais-chains", 2,
            "--ais-steps", 3)


def test_a_full_run_on_housenumbers(tmp_path):
    command(tmp_path, "--gpu", "--steps", 5000, "--out", "run")
    tests = [row["test_loss"] for row in Run.open(tmp_path / "run").metrics() if "test_loss" in row]
    assert len(tests) == 5 and tests[-1] < 100 and (tmp_path / "run" / "samples.png").exists()


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
@pytest.mark.parametrize("sigma", ["1", "pixel", "spectrum"])
def test_compute_sanitizer(digits, tool, sigma):
    sanitizer = shutil.which("compute-sanitizer")
    if not sanitizer:
        pytest.skip("compute-sanitizer is not installed; it comes with the CUDA toolkit")
    command(digits, "--data", "digits.npz", "--gpu", "--steps", 3, "--batch-size", 5, "--sigma", sigma, "--out", "run",
            before=(sanitizer, "--tool", tool, "--report-api-errors", "no", "--error-exitcode", "9"))
