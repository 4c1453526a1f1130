"""The command line as a user meets it: files, exit codes, error lines."""

import argparse
import ast
import contextlib
import csv
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from PIL import Image

import minivae
import run as command_line
from minivae import __version__, commands
from minivae.density import estimates
from minivae.errors import UserError, run_command
from minivae.images import export, housenumbers
from minivae.ops import numpy_ops
from minivae.options import COMMANDS
from minivae.training import checkpoint, figures
from minivae.training.ranks import Alone
from minivae.training.runs import Run

ROOT = Path(__file__).parent.parent


def process(*arguments, cwd, **environment):
    command = [sys.executable, ROOT / "run.py", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)


def run(*arguments, cwd):
    """The same in this process, which has the libraries loaded."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = command_line.main([str(a) for a in arguments])
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def refused(*arguments, cwd, says):
    done = run(*arguments, cwd=cwd)
    assert done.returncode == 2, done
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and says in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with digits.npz and first/, a run of six steps on it."""
    folder = tmp_path_factory.mktemp("cli")
    images = np.random.RandomState(0).randint(0, 256, (60, 16, 16, 3)).astype(np.uint8)
    np.savez(folder / "digits.npz", train=images[:40], test=images[40:])
    done = process("--data", "digits.npz", "--steps", 6, "--batch-size", 8, "--log-every", 2, "--eval-every", 3,
               "--checkpoint-every", 4, "--out", "first", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "samples.png" in done.stdout and "step      6" in done.stdout
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """The same for one test alone. It costs no copies: what a run's files hold is replaced, never written over."""
    return shutil.copytree(trained, tmp_path, copy_function=os.link, dirs_exist_ok=True)


def png(path):
    with Image.open(path) as image:
        return image.size


def test_a_training_can_be_watched_through_a_pipe(folder):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    command = [sys.executable, ROOT / "run.py", "--data", "digits.npz", "--steps", "100000", "--batch-size", "8",
               "--log-every", "1", "--out", "watched"]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("digits: 40 training and 20 test images of 16x16x3")
        assert process.stdout.readline().startswith("2.6 million parameters; about ")
        assert process.stdout.readline() == "100000 steps on 40 images of digits, into watched\n"
        assert process.stdout.readline().startswith("test losses use batch norm's moving averages")
        assert process.stdout.readline().startswith("step      1 ")
        assert process.poll() is None
        process.kill()


def test_train_leaves_what_it_promises(trained, folder):
    names = {"config.json", "metrics.csv", "checkpoint.h5", "checkpoint-previous.h5",
             "losses.png", "samples.png", "reconstructions.png"}
    assert names == {p.name for p in (folder / "first").iterdir()}
    config = json.loads((folder / "first" / "config.json").read_text())
    assert config["data"] == str(trained / "digits.npz") and config["steps"] == 6 and config["shape"] == [16, 16, 3]
    with open(folder / "first" / "metrics.csv") as f:
        rows = list(csv.DictReader(f))
    assert ",".join(rows[0]) == "step,seconds,train_loss,train_rec,train_kl,test_loss,test_rec,test_kl"
    assert [r["step"] for r in rows] == ["2", "3", "4", "6"]
    assert [bool(r["test_loss"]) for r in rows] == [False, True, False, True]
    for r in rows:
        assert float(r["train_loss"]) == pytest.approx(float(r["train_rec"]) + float(r["train_kl"]), abs=2e-4)
    assert png(folder / "first" / "samples.png") == (20 * 36, 10 * 36)  # 200 images in rows of 20, pixels doubled


def test_an_existing_run_is_never_overwritten(folder):
    before = (folder / "first" / "checkpoint.h5").read_bytes()
    refused("--data", "digits.npz", "--batch-size", 8, "--out", "first", cwd=folder, says="already holds a run")
    assert (folder / "first" / "checkpoint.h5").read_bytes() == before


def test_runs_are_numbered(folder):
    for n in (1, 2):
        done = run("train", "--data", "digits.npz", "--steps", 1, "--batch-size", 4, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert (folder / "runs" / f"digits-{n}" / "checkpoint.h5").exists()


def test_resume(folder):
    refused("resume", "first", cwd=folder, says="larger --steps")
    done = run("resume", "first", "--steps", 9, cwd=folder)
    assert done.returncode == 0, done.stderr
    with open(folder / "first" / "metrics.csv") as f:
        assert [r["step"] for r in csv.DictReader(f)] == ["2", "3", "4", "6", "8", "9"]


def parameters(run):
    found = []

    def keep(_, item):
        if isinstance(item, h5py.Dataset):
            found.append(item[()].ravel())

    with h5py.File(run / "checkpoint.h5") as f:
        f["parameters"].visititems(keep)
    return np.concatenate(found)


def test_resume_with_another_rate(folder):
    """It is said, recorded and used: with a rate of nearly nothing the parameters stay where they were."""
    before = parameters(folder / "first")
    done = run("resume", "first", "--steps", 8, "--lr", 1e-12, cwd=folder)
    assert "--lr is 1e-12 from step 6 on, and was 0.001\n" in done.stdout, done
    config = json.loads((folder / "first" / "config.json").read_text())
    assert config["lr"] == 1e-12 and config["lr_end"] == 0 and config["earlier_rates"] == [[6, 1e-3]]
    np.testing.assert_allclose(parameters(folder / "first"), before, atol=1e-10)
    (folder / "first" / "checkpoint-previous.h5").replace(folder / "first" / "checkpoint.h5")  # as after a kill
    done = run("resume", "first", "--lr", 1e-12, cwd=folder)
    assert done.returncode == 0 and "--lr is" not in done.stdout, done
    np.testing.assert_allclose(parameters(folder / "first"), before, atol=1e-10)


def test_fine_tuning(folder):
    """A new run starts from another's model, on other images; the other stays as it is, and none is taken for it."""
    images = np.random.RandomState(1).randint(0, 256, (30, 16, 16, 3)).astype(np.uint8)
    np.savez(folder / "other.npz", train=images[:20], test=images[20:])
    before = {path.name: path.read_bytes() for path in (folder / "first").iterdir()}
    done = refused("resume", "first", "--steps", 9, "--data", "other.npz", cwd=folder, says="holds other images")
    command = done.stderr.split("in a new run: python run.py ")[1].split()
    done = run(*command, "--steps", 2, "--lr", 1e-12, "--out", "tuned", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert f"starting from the model of {folder}/first, step 6\n" in done.stdout
    assert before == {path.name: path.read_bytes() for path in (folder / "first").iterdir()}
    np.testing.assert_allclose(parameters(folder / "tuned"), parameters(folder / "first"), atol=1e-10)
    configs = [json.loads((folder / name / "config.json").read_text()) for name in ("first", "tuned")]
    assert configs[1]["origin"] == f"{folder}/first, step 6"
    assert configs[1]["train_sha256"] != configs[0]["train_sha256"]
    assert run("resume", "tuned", "--steps", 3, cwd=folder).returncode == 0
    for path in (folder / "tuned").glob("checkpoint*"):
        path.unlink()
    refused("resume", "tuned", "--steps", 3, cwd=folder, says="start it again, in another folder")


@pytest.mark.parametrize("options, says", [
    (["--latent", 3], "the model of first has latent 10, and this run's would have 3"),
    (["--sigma", 0.1], "has sigma 1.0, and this run's would have 0.1; --size, --latent, --sigma and --labels must"),
    (["--size", 8], "has shape (16, 16, 3), and this run's would have (8, 8, 3)"),
    (["--from", "nowhere"], "there is no nowhere"),
    (["--from", "."], ". holds no run"),
])
def test_fine_tuning_another_model(folder, options, says):
    before = sorted(folder.rglob("*"))
    refused("--data", "digits.npz", "--from", "first", *options, cwd=folder, says=says)
    assert sorted(folder.rglob("*")) == before


def test_sample_reconstruct_interpolate(folder):
    before = (folder / "first" / "samples.png").read_bytes()
    assert run("sample", "first", "--count", 30, "--seed", 3, cwd=folder).returncode == 0
    assert png(folder / "first" / "samples-count30-seed3.png") == (20 * 36, 2 * 36)
    assert (folder / "first" / "samples.png").read_bytes() == before
    assert run("sample", "first", cwd=folder).returncode == 0
    assert png(folder / "first" / "samples.png") == (20 * 36, 10 * 36)
    assert (folder / "first" / "samples.png").read_bytes() == before
    for command, name in (("reconstruct", "reconstructions.png"), ("interpolate", "interpolation.png")):
        (folder / "first" / name).unlink(missing_ok=True)
        done = run(command, "first", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert str(Path("first") / name) in done.stdout
        assert png(folder / "first" / name)[0] > 0


def cells(path, columns):
    """The images of a picture (rows, columns, 16, 16, 3)."""
    with Image.open(path) as image:
        picture = np.asarray(image)[::2, ::2]
    return picture.reshape(-1, 18, columns, 18, 3).swapaxes(1, 2)[:, :, 1:-1, 1:-1]


def test_samples_with_their_noise(folder):
    """Each row of means stands above that of its draws of p(x|z), whose sigma is 1."""
    assert run("sample", "first", "--noise", "--count", 30, "--seed", 3, cwd=folder).returncode == 0
    found = cells(folder / "first" / "samples-noise-count30-seed3.png", 20)
    assert len(found) == 4
    means, draws = (found[start::2].reshape(-1, 16, 16, 3)[:30] for start in (0, 1))
    model = minivae.load(folder / "first")
    np.testing.assert_array_equal(means, model.sample(30, 3))
    np.testing.assert_array_equal(draws, model.sample(30, 3, noise=True))
    assert run("sample", "first", "--noise", cwd=folder).stdout == "first/samples-noise.png\n"


@pytest.mark.parametrize("noise", [[], ["--noise"]])
def test_samples_one_by_one(folder, noise):
    expected = minivae.load(folder / "first").sample(11, 4, noise=bool(noise))
    arguments = ["sample", "first", *noise, "--count", 11, "--seed", 4, "--out"]
    assert run(*arguments, "new/png", cwd=folder).stdout == "new/png\n"
    files = sorted((folder / "new" / "png").iterdir())
    assert [file.name for file in files] == [f"{number:02}.png" for number in range(11)]
    np.testing.assert_array_equal([np.asarray(Image.open(file)) for file in files], expected)
    assert run(*arguments, "samples.npz", cwd=folder).stdout == "samples.npz\n"
    with np.load(folder / "samples.npz") as f:
        assert f.files == ["images"]
        np.testing.assert_array_equal(f["images"], expected)
    for out, says in [("new/png", "is not empty (0"), ("samples.png", "samples.png is neither an .npz nor a folder"),
                      ("first/config.json", "config.json is neither an .npz nor a folder"),
                      ("digits.npz/png", "cannot write digits.npz/png (Not a directory)")]:
        refused(*arguments, out, cwd=folder, says=says)


def test_grey_samples_one_by_one(tmp_path, rng):
    images = rng.integers(0, 256, (3, 8, 16, 1), np.uint8)
    export.export(tmp_path, images)
    np.testing.assert_array_equal([np.asarray(Image.open(tmp_path / f"{n}.png")) for n in range(3)], images[..., 0])


def save(path, pixels):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_images_of_ones_own(folder, rng):
    images = rng.integers(0, 256, (6, 16, 16, 3), np.uint8)
    for row, image in enumerate(images):
        save(folder / "own" / f"{row}.png", image)
    before = (folder / "first" / "reconstructions.png").read_bytes()
    (folder / "digits.npz").unlink()  # the run's own images are not needed
    done = run("reconstruct", "first", "own", cwd=folder)
    assert done.returncode == 0 and done.stdout == "6 images of own\nfirst/reconstructions-own.png\n", done
    assert (folder / "first" / "reconstructions.png").read_bytes() == before
    rows = np.asarray(Image.open(folder / "first" / "reconstructions-own.png"))
    np.testing.assert_array_equal(rows[2:34:2, 2:34:2], images[0])
    done = run("interpolate", "first", "--pairs", "4.png", "1.png", "2.png", "3.png", "--data=x", "own", cwd=folder)
    assert done.returncode == 0, done.stderr
    rows = np.asarray(Image.open(folder / "first" / "interpolation-own.png"))
    assert rows.shape == (2 * 36, 12 * 36, 3)
    np.testing.assert_array_equal(rows[2:34:2, 2:34:2], images[4])
    np.testing.assert_array_equal(rows[38:70:2, -34:-2:2], images[3])


def test_what_is_wrong_with_a_path_or_a_pair(folder, rng):
    save(folder / "own" / "a.png", rng.integers(0, 256, (16, 16, 3), np.uint8))
    for arguments, says in [
        (["interpolate", "first", "own", "--pairs", "a.png"], "--pairs has an odd number of names (1); give two"),
        (["interpolate", "first", "own", "--pairs", "a.png", "b.png"], "b.png; there are such as a.png"),
        (["interpolate", "first", "--pairs", "0", "20"], "no image is named 20; there are such as"),
        (["reconstruct", "first", "nothing.zip"], "nothing.zip cannot be read (No such file or directory)"),
    ]:
        refused(*arguments, cwd=folder, says=says)


def test_encode(folder, rng):
    """Mean and variance as the model has them, with names and labels, in three formats."""
    images = rng.integers(0, 256, (70, 16, 16, 3), np.uint8)
    np.savez(folder / "own.npz", images=images, labels=np.array(["cat", "dog"])[np.arange(70) % 2])
    _, vae, *_ = checkpoint.open_model(folder / "first", numpy_ops)
    model = estimates.Model(vae)
    mean, var = model.posterior(model.device(estimates.scaled(images)))
    for name in ("codes.npz", "codes.csv", "codes.h5"):
        done = run("encode", "first", "own.npz", "--out", name, cwd=folder)
        assert (done.returncode, done.stdout) == (0, f"70 images of own.npz\n{name}\n"), done
    with h5py.File(folder / "codes.h5") as f:
        h5 = {name: (f[name].asstr() if f[name].dtype == object else f[name])[()] for name in f}
    with np.load(folder / "codes.npz") as f:
        npz = dict(f)
    with open(folder / "codes.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    for found in (h5, npz):
        assert found["name"].tolist() == [str(row) for row in range(70)]
        assert found["label"].tolist() == ["cat", "dog"] * 35
        assert found["mean"].dtype == found["var"].dtype == np.float32
        np.testing.assert_allclose(found["mean"], mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["var"], var, rtol=1e-4)
    assert list(rows[0]) == ["name", "label", *(f"{of}_{z}" for of in ("mean", "var") for z in range(10))]
    for row, name, label, m, v in zip(rows, *(npz[key] for key in ("name", "label", "mean", "var")), strict=True):
        assert (row["name"], row["label"]) == (name, label)
        np.testing.assert_array_equal([np.float32(row[f"mean_{z}"]) for z in range(10)], m)
        np.testing.assert_array_equal([np.float32(row[f"var_{z}"]) for z in range(10)], v)


def test_encode_test_images(folder):
    done = run("encode", "first", cwd=folder)
    assert done.returncode == 0 and done.stdout.endswith("first/codes.h5\n"), done
    with h5py.File(folder / "first" / "codes.h5") as f:
        names = f["name"].asstr()[()].tolist()
        assert sorted(f) == ["mean", "name", "var"]  # its images have no labels
    assert names == [str(row) for row in np.random.RandomState(0).permutation(20)]
    for out, says in [("codes.txt", "has the suffix '.txt'; give a file with one of .h5, .npz, .csv"),
                      ("nowhere/codes.h5", "cannot write nowhere (No such file or directory)")]:
        before = sorted(folder.rglob("*"))
        assert refused("encode", "first", "--out", out, cwd=folder, says=says).stdout == ""
        assert sorted(folder.rglob("*")) == before


def test_score(folder, rng):
    """Without a card, beside one, and of images of one's own."""
    done = run("score", "first", "--importance", 2, cwd=folder)
    assert done.returncode == 0, done
    assert "ranks among the run's test images are left out" in done.stdout and "it does not tell" in done.stdout
    assert done.stdout.endswith("first/scores.csv\nfirst/scores.png\n")
    settings = ["--images", 20, "--importance", 3, "--ais-images", 2, "--ais-chains", 2, "--ais-steps", 2]
    assert run("evaluate", "first", *settings, cwd=folder).returncode == 0
    card = json.loads((folder / "first" / "density.json").read_text())
    assert run("score", "first", cwd=folder).returncode == 0
    with open(folder / "first" / "scores.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    np.testing.assert_allclose([float(row["elbo"]) for row in rows], card["bounds"]["elbo_each"], rtol=1e-6)
    iwae = np.mean([float(row["iwae"]) for row in rows])  # of as many draws as the card's
    assert iwae == pytest.approx(card["bounds"]["rows"]["iwae"]["nats_per_image"], rel=1e-6)
    images = np.load(folder / "digits.npz")["test"][np.random.RandomState(0).permutation(20)[:2]]
    for name, image in zip(("b.png", "a.png"), images, strict=True):
        save(folder / "own" / name, image)
    assert run("score", "first", "own", "--ais", "--out", "own.csv", cwd=folder).returncode == 0
    with open(folder / "own.csv", newline="") as f:
        own = list(csv.DictReader(f))
    assert list(own[0]) == ["name", "elbo", "rec", "kl", "iwae", "effective_samples", "ais", "ais_95", "bits_per_dim",
                            "rank"]
    annealed = [float(row["ais"]) for row in own[::-1]]
    np.testing.assert_allclose(annealed, card["annealed"]["ais_each"], rtol=1e-6)
    for mine, row in zip(own[::-1], rows, strict=False):
        assert {name: mine[name] for name in ("elbo", "iwae", "kl", "rank")} == {
            name: row[name] for name in ("elbo", "iwae", "kl", "rank")}
    assert [row["name"] for row in own] == ["a.png", "b.png"]
    assert png(folder / "first" / "scores-own.png")[0] > 0


def test_what_is_wrong_with_a_score(folder):
    before = sorted(folder.rglob("*"))
    for arguments, says in [(["nothing.zip"], "nothing.zip cannot be read (No such file or directory)"),
                            (["--out", "scores.txt"], "has the suffix '.txt'; give a file with one of"),
                            (["--out", "nowhere/scores.csv"], "cannot write nowhere (No such file or directory)")]:
        refused("score", "first", *arguments, cwd=folder, says=says)
    assert sorted(folder.rglob("*")) == before


def test_names_that_are_no_text(folder, rng):
    own = folder / "own"
    own.mkdir()
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(own / "a.png")
    (own / "a.png").rename(os.fsdecode(os.fsencode(own) + b"/caf\xe9.png"))
    for name in ("codes.csv", "codes.h5", "codes.npz"):
        assert run("encode", "first", "own", "--out", name, cwd=folder).returncode == 0
    assert "caf\\udce9.png," in (folder / "codes.csv").read_text()


def test_traverse(folder, rng):
    done = run("traverse", "first", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "around 0, the mean of the prior; one latent a row, by its KL" in done.stdout
    assert " of 20 images: z" in done.stdout
    kl = [float(text) for text in re.findall(r"z\d ([\d.]+)", done.stdout)]
    assert len(kl) == 10 and kl == sorted(kl, reverse=True)
    assert png(folder / "first" / "traverse.png")[0] > 0
    save(folder / "own" / "a.png", rng.integers(0, 256, (16, 16, 3), np.uint8))
    done = run("traverse", "first", "own", cwd=folder)
    assert "around the code of a.png; one latent a row" in done.stdout
    assert done.stdout.endswith("first/traverse-own.png\n")
    model = minivae.load(folder / "first")
    mean, var = model.encode(np.asarray(Image.open(folder / "own" / "a.png"))[None])
    figures.draw_traversal(folder / "expected.png", model.vae, mean[0], estimates.kl_per_latent(mean, var)[0])
    assert (folder / "first" / "traverse-own.png").read_bytes() == (folder / "expected.png").read_bytes()


def test_evaluate(folder):
    settings = ["--images", 8, "--importance", 4, "--ais-images", 2, "--ais-chains", 2, "--ais-steps", 3]
    done = run("evaluate", "first", *settings, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "log-likelihood by AIS" in done.stdout
    assert json.loads((folder / "first" / "density.json").read_text())["test"]["images"] == 20
    assert png(folder / "first" / "density.png")[0] > 0


@pytest.mark.parametrize("arguments, says", [
    (["--steps", "0"], "--steps"),
    (["--steps", "many"], "whole number"),
    (["--steps", "99999999999999999999"], "a whole number from 1 to"),
    (["--batch-size", "1"], "a whole number"),
    (["--batch-size", "41"], "exceeds the 40 training images"),
    (["--lr", "nan"], "above 0"),
    (["--lr-end", "-1"], "at least 0"),
    (["--latent", "-3"], "--latent"),
    (["--kl", "exact"], "--kl"),
    (["--out", ""], "--out: '' is not a path"),
    (["--data=~nobody-has-this-name/x"], "is not a path"),
    (["--sigma", "0"], "--sigma"),
    (["--bogus"], "unknown argument --bogus; see: python run.py --help"),
    (["--stepz=5"], "unknown argument --stepz; did you mean --steps?"),
    (["bogus"], "bogus is not a command; see: python run.py --help"),
    (["evalute", "first"], "evalute is not a command; did you mean evaluate?"),
    (["sample", "first", "--cuont", "5"], "did you mean --count? see: python run.py sample --help"),
    (["sample", "first", "second"], "unknown argument second;"),
    (["sample"], "RUN; see: python run.py sample --help"),
    (["--precision", "fp32"], "--gpu"),
    (["resume", "nowhere"], "there is no nowhere;"),
    (["sample", "."], "no run"),
])
def test_mistakes_get_one_line(folder, arguments, says):
    if arguments[0].startswith("--"):
        arguments = ["--data", "digits.npz", *arguments]
    refused(*arguments, cwd=folder, says=says)


@pytest.mark.parametrize("command", [["--steps", 1], ["resume", "first"], ["sample", "first"], ["evaluate", "first"],
                                     ["gradcheck"]])
def test_gpu_without_a_gpu_says_what_is_missing(folder, command, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    before = sorted(folder.rglob("*"))
    refused(*command, "--gpu", "--precision", "fp32", cwd=folder, says="pip install -r requirements-gpu.txt")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("out, says", [
    ("digits.npz", "cannot make the run directory digits.npz (Not a directory); choose another with --out"),
    ("digits.npz/x", "cannot make the run directory digits.npz/x (Not a directory)"),
    ("/proc/x", "cannot make the run directory /proc/x (No such file or directory)"),
    ("first", "already holds a run"),
    (".", ". is not empty"),
])
def test_a_place_for_a_run_is_looked_at_before_images_are(folder, monkeypatch, out, says):
    monkeypatch.setattr("minivae.images.data.load", None)
    before = sorted(folder.rglob("*"))
    refused("--data", "digits.npz", "--out", out, cwd=folder, says=says)
    assert sorted(folder.rglob("*")) == before


def test_data_that_is_not_there(folder):
    refused("--data", "svnh", cwd=folder, says="svnh: No such file or directory; did you mean svhn?")
    refused("--data", "nothing.npz", cwd=folder, says="nothing.npz: No such file or directory")


def test_data_that_changed_since(folder):
    np.savez(folder / "other.npz", train=np.zeros((9, 8, 8, 1), np.uint8), test=np.zeros((9, 8, 8, 1), np.uint8))
    done = run("--data", "other.npz", "--steps", 1, "--batch-size", 4, "--out", "changed", cwd=folder)
    assert done.returncode == 0, done.stderr
    np.savez(folder / "other.npz", train=np.ones((9, 8, 8, 1), np.uint8), test=np.zeros((9, 8, 8, 1), np.uint8))
    refused("resume", "changed", "--steps", 2, cwd=folder, says="other images")


def test_a_home_is_expanded(folder, monkeypatch):
    """In --data=~/x and --out=~/x no shell does it."""
    monkeypatch.setenv("HOME", str(folder))
    refused("--data=~/nothing", cwd=folder, says=f"{folder}/nothing")
    assert run("--data=~/digits.npz", "--steps", 1, "--batch-size", 4, "--out=~/x", cwd=ROOT).returncode == 0
    assert (folder / "x" / "config.json").exists()


def test_named_data_where_nothing_can_be_written(folder, monkeypatch):
    monkeypatch.setattr(housenumbers, "make", lambda split, **_: (np.zeros((20, 8, 8, 1), np.uint8), None))
    monkeypatch.setattr(commands, "DATA", folder / "digits.npz" / "data")
    refused(cwd=folder, says="set the environment variable MINIVAE_DATA to a folder")


def test_the_environment(folder):
    """Data elsewhere, output that cannot hold a name, a backend of matplotlib's that is not there."""
    images = np.random.RandomState(0).randint(0, 256, (20, 8, 8, 1)).astype(np.uint8)
    (folder / "elsewhere").mkdir()
    with h5py.File(folder / "elsewhere" / "housenumbers.h5", "w") as f:
        f["train/images"] = f["test/images"] = images
        f["test/images"][:] = 255 - images
    done = process("--steps", 1, "--batch-size", 4, "--out", "caf\u00e9", cwd=folder, MPLBACKEND="none",
                   PYTHONIOENCODING="ascii", MINIVAE_DATA=str(folder / "elsewhere"))
    assert done.returncode == 0, done.stderr
    assert "on 20 images of housenumbers, into caf\\xe9" in done.stdout


def test_a_system_that_is_not_unix(folder):
    """What it lacks is not called a package that was not installed."""
    for module in ("fcntl", "resource"):
        (folder / "without").mkdir(exist_ok=True)
        (folder / "without" / "sitecustomize.py").write_text(f"import sys; sys.modules[{module!r}] = None")
        environment = {"PYTHONPATH": str(folder / "without")}
        done = process("--data", "digits.npz", "--steps", 1, "--batch-size", 4, cwd=folder, **environment)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done
        assert done.stderr.startswith("error: minivae needs Linux or macOS; on Windows, run it in WSL")
        assert "resume RUN" in process("--help", cwd=folder, **environment).stdout


def run_as_main(code, cwd):
    """run.py as __main__ in a process that has run the lines of `code` before."""
    code += (f"import runpy, sys\nsys.path[0] = {str(ROOT)!r}\n"
             "runpy.run_path(sys.path[0] + '/run.py', run_name='__main__')")
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("module", ["argparse", "minivae.training.settings"])
def test_an_interrupt_while_the_program_is_loaded(tmp_path, module):
    code = ("import builtins, sys\n"
            "load = builtins.__import__\n"
            "def interrupt(name, *rest):\n"
            f"    if name == {module!r}: raise KeyboardInterrupt\n"
            "    return load(name, *rest)\n"
            "builtins.__import__ = interrupt\n")
    done = run_as_main(code, cwd=tmp_path)
    assert done.returncode == 130 and done.stderr == "error: interrupted\n", done


def test_a_notebook(folder, monkeypatch):
    """Its %run puts streams that are no files in place of a process's; its threads can handle no signals."""
    out, err = io.StringIO(), io.StringIO()
    statuses = []

    def cell(*arguments):
        sys.argv = ["run.py", *arguments]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as e:
            runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
        statuses.append(e.value.code)

    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setattr(sys, "argv", sys.argv)
    with contextlib.chdir(folder):
        for arguments in (["--data", "digits.npz", "--steps", "2", "--out", "new"], ["sample", "new"], ["sample", "x"]):
            thread = threading.Thread(target=cell, args=arguments)
            thread.start()
            thread.join()
    assert statuses == [0, 0, 2] and err.getvalue().startswith("error: there is no x"), err.getvalue()
    assert "step      2" in out.getvalue() and out.getvalue().endswith("new/samples.png\n")
    assert os.environ["MPLBACKEND"] == "module://matplotlib_inline.backend_inline"  # the notebook's own pictures


def test_closed_output(folder):
    shell = f"{sys.executable} {ROOT / 'run.py'} reconstruct first >&- 2>&-"
    (folder / "first" / "reconstructions.png").unlink()
    assert subprocess.run(shell, shell=True, cwd=folder).returncode == 0
    assert png(folder / "first" / "reconstructions.png")[0] > 0


@pytest.mark.parametrize("error, status, says", [
    (KeyboardInterrupt(), 130, "error: interrupted\n"),
    (MemoryError(), 2, "error: out of memory (none is left); "),
    (ModuleNotFoundError("No module named 'h5py'", name="h5py"), 2, "error: h5py is not installed; run: pip install"),
    (ImportError("lib.so: failed to map segment"), 2, "error: a library cannot be loaded (lib.so: failed to map"),
    (PermissionError(13, "Permission denied", "x"), 2, "error: [Errno 13] Permission denied: 'x'; fix that, then"),
    (BrokenPipeError(), 141, ""),
])
def test_what_a_machine_does(tmp_path, monkeypatch, error, status, says):
    def fail(_):
        raise error

    monkeypatch.setattr(commands, "gradcheck", fail)
    done = run("gradcheck", cwd=tmp_path)
    assert done.returncode == status and done.stderr.startswith(says) and done.stderr.count("\n") == bool(says), done


def test_an_older_python_is_told_so(tmp_path):
    """Nothing before that line is newer than Python 3.8, and nothing of minivae's is imported."""
    ast.parse((ROOT / "run.py").read_text(), feature_version=(3, 8))
    code = f"import runpy, sys; sys.version_info = (3, 8, 1); runpy.run_path({str(ROOT / 'run.py')!r})"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: minivae needs Python 3.11 or newer; this is "), done
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("options, words", [({}, ""), ({"precision": "fp32"}, " --gpu --precision fp32")])
def test_how_to_go_on_can_be_pasted(capsys, monkeypatch, options, words):
    """On the same device, whether a run was stopped or has no checkpoint yet."""
    monkeypatch.setattr("minivae.ops.cuda_module.require_gpu", lambda precision: None)
    commands.chosen_operations(argparse.Namespace(command="resume", gpu=bool(words), ranks=Alone(), **options))
    run = Run(Path("my runs") / "it's", SimpleNamespace(steps=9))
    trainer = SimpleNamespace(step_count=5)
    assert commands.finish(run, trainer, 15) == 143
    expected = f"python run.py resume 'my runs/it'\"'\"'s'{words}"
    assert f"{expected}\n" in capsys.readouterr().out
    with pytest.raises(UserError, match=re.escape(f"{expected} trains it")):
        checkpoint.load_model(run / "checkpoint.h5", None, run.config)
    commands.chosen_operations(argparse.Namespace(command="resume", gpu=False, ranks=Alone()))
    assert run_command("resume", "x") == "python run.py resume x"


def test_help(capsys):
    """One page names all commands and train's options; each command has a page of its own."""
    pages = {}
    for command in ([], *([name] for name in COMMANDS)):
        with pytest.raises(SystemExit, match="0"):
            command_line.main([*command, "--help"])
        pages[" ".join(command)] = capsys.readouterr().out
    assert pages[""] == pages["train"] and "--batch-size" in pages[""]
    for name, what in COMMANDS.items():
        assert name in pages[""] and what in pages[""] and "--gpu" in pages[name]
    assert "RUN" in pages["sample"] and "--count" in pages["sample"] and "--batch-size" not in pages["sample"]


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        command_line.main(["--version"])
    assert capsys.readouterr().out == f"minivae {__version__}\n"


def test_help_is_quick(folder):
    """In seconds of a processor, which other work on the machine does not change."""
    times = []
    for _ in range(3):
        start = os.times()
        assert "resume RUN" in process("--help", cwd=folder).stdout
        end = os.times()
        times.append(end.children_user - start.children_user + end.children_system - start.children_system)
    assert min(times) < 0.5
