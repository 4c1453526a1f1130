"""A model that is given labels: how they are numbered, which it gets at each step, what the commands say of them."""

import json
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from test_cli import png, refused, run
from test_train import config

import minivae
from minivae.density import card
from minivae.density import labels as density_labels
from minivae.density.estimates import Model, scaled
from minivae.errors import UserError
from minivae.images import data, export, given, labels, stream
from minivae.images.data import Dataset, Split
from minivae.noise import Noise, numbered
from minivae.training import checkpoint, figures, finite
from minivae.training.evaluation import Evaluation
from minivae.training.runs import Run
from minivae.training.statistics import estimated
from minivae.training.trainer import Trainer
from minivae.vae import VAE, Widths

SMALL = Widths((4, 5, 6), 7, (8, 6, 5))


def dataset(train, test, names=None):
    """Black images with these labels."""
    splits = (Split(np.zeros((len(found), 8, 8, 1), np.uint8), np.array(found), path="d", label_names=names)
              for found in (train, test))
    return Dataset("d", *splits, [])


def test_numbers_are_named_by_themselves():
    found = dataset([7, -3, 7, 12], [12, 7])
    known = labels.names(found)
    assert known == ["-3", "7", "12"]
    train, test = (labels.places(split, known) for split in (found.train, found.test))
    assert train.tolist() == [1, 0, 1, 2] and test.tolist() == [2, 1]
    assert train.dtype == test.dtype == np.int32


def test_texts_are_known_by_their_names():
    """Another data set may number the same names otherwise; one that training images lack is not the model's."""
    assert labels.names(dataset([0, 3, 3], [3], ["ant", "bee", "cat", "dog"])) == ["ant", "dog"]
    other = dataset([1, 0, 0], [0], ["dog", "ant"])
    assert labels.places(other.train, ["ant", "dog"]).tolist() == [0, 1, 1]


def test_labels_that_the_model_does_not_know_are_refused():
    found = dataset([0, 1], [1, 2], ["ant", "bee", "cat"])
    with pytest.raises(UserError, match="images of d have the label cat, which no training image has"):
        labels.places(found.test, labels.names(found))
    found.train.labels = None
    for ask in (lambda: labels.names(found), lambda: labels.places(found.train, ["ant"])):
        with pytest.raises(UserError, match="images of d have no labels"):
            ask()
    assert labels.places(found.train, []) is None


def test_the_hash_tells_any_change():
    hashes = set()
    for train, test in (([0, 1, 1], [0]), ([1, 0, 1], [0]), ([0, 1, 1], [1]), ([0, 1], [0])):
        found = dataset(train, test)
        hashes.add(labels.sha256(found, labels.names(found)))
    assert len(hashes) == 4
    assert labels.sha256(found, []) == ""


@pytest.fixture
def both(tmp_path, rng, monkeypatch):
    """The same data set in memory and streamed: 100 images whose first pixel is their label, of 0 to 4."""
    images = rng.integers(0, 256, (100, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = rng.integers(0, 5, 100)
    truth = images[:, 0, 0, 0].astype(int)
    data.write_hdf5(tmp_path / "a.h5", "test", [("train", images, truth), ("test", images[:30] ^ 8, truth[:30])])
    found = [data.load(str(tmp_path / "a.h5"), None)]
    monkeypatch.setattr(stream, "memory", lambda: 1000)
    found.append(data.load(str(tmp_path / "a.h5"), None))
    return found


def trainer(found, ops):
    known = labels.names(found)
    given = labels.places(found.train, known)
    return Trainer(config(label_names=known), found.train.images, ops, widths=SMALL, labels=given)


def test_each_step_has_the_labels_of_its_images(both, ops):
    """Over several chunks of steps, in memory and streamed, where the bits are the same."""
    held, streamed = (trainer(found, ops) for found in both)
    assert isinstance(streamed.batches.images, stream.Streamed)
    for _ in range(9):
        for t in (held, streamed):
            t.step()
            shown = np.rint((t.x[:, 0, 0, 0] + 1) * 127.5)
            np.testing.assert_array_equal(t.labels, shown)
    np.testing.assert_array_equal(held.vae.params.values, streamed.vae.params.values)
    np.testing.assert_array_equal(held.history, streamed.history)


def test_a_step_s_losses_are_those_with_its_labels(both, ops):
    t = trainer(both[0], ops)
    t.step()
    for truth, same in ((t.labels, True), (0 * t.labels, False)):
        rec, _ = t.build(ops).forward(t.x, t.eps, labels=truth)
        assert (rec.mean() == pytest.approx(t.history[0, 0], rel=1e-6)) == same


def test_statistics_for_test_mode_are_those_with_the_labels(both, ops):
    """After one step, the moments that its batch has in the model as it is now."""
    t = trainer(both[0], ops)
    t.step()
    other = t.build(ops)
    other.params.values[...] = t.vae.params.values
    other.forward(t.x, t.eps, labels=t.labels)
    with estimated(t):
        found = t.vae.generator.dense.norm.moving.value
        np.testing.assert_allclose(found, other.generator.dense.norm.moments, atol=1e-4)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_failing_step_is_run_again_with_its_labels(both, ops):
    t = trainer(both[0], ops)
    t.step()
    assert finite.first_failure(t) is None
    t.eps[0, 0] = np.inf
    assert "operation latent" in finite.first_failure(t)


def test_resuming_with_labels_gives_the_same_bits(both, ops, tmp_path):
    whole, second = (trainer(both[0], ops) for _ in range(2))
    for _ in range(6):
        whole.step()
    checkpoint.save(tmp_path / "checkpoint.h5", whole, whole.config, 0)
    checkpoint.load_training(tmp_path / "checkpoint.h5", second)
    for _ in range(3):
        whole.step()
        second.step()
    np.testing.assert_array_equal(whole.vae.params.values, second.vae.params.values)
    np.testing.assert_array_equal(whole.adam.v, second.adam.v)


def test_test_losses_depend_on_each_images_label(both, ops):
    """Of 450 images, in batches of 200."""
    t = trainer(both[0], ops)
    for _ in range(3):
        t.step()
    rows = np.arange(450) % 30
    images, truth = both[0].test.images[rows], both[0].test.labels[rows].astype(np.int32)
    one_by_one = Evaluation(t.vae, images, 0, truth).losses()
    for row in (0, 199, 200, 449):
        other = truth.copy()
        other[row] = (truth[row] + 1) % 5
        rec, kl = Evaluation(t.vae, images, 0, other).losses()
        assert rec != one_by_one[0] and kl == one_by_one[1]


def test_pictures_decode_with_the_right_labels(ops, tmp_path, monkeypatch):
    """Samples: a row for each label, or one label; reconstructions: the image's; interpolations: the nearer
    image's; a traversal: one."""
    given = []

    def decode(vae, z, labels=None, noise=None):
        given.append(labels.tolist())
        return np.zeros((len(z), *vae.shape))

    vae = VAE((8, 8, 1), 2, ops, widths=SMALL, classes=3)
    monkeypatch.setattr(figures, "decode", decode)
    images, truth = np.zeros((5, 8, 8, 1), np.uint8), np.array([2, 0, 1, 1, 2], np.int32)
    figures.draw_samples(tmp_path / "a.png", vae)
    figures.draw_samples(tmp_path / "a.png", vae, 70)
    figures.draw_samples(tmp_path / "a.png", vae, 22, label=0)
    figures.draw_reconstructions(tmp_path / "a.png", vae, images, 4, labels=truth)
    figures.draw_interpolation(tmp_path / "a.png", vae, images, columns=6, labels=truth)
    figures.draw_traversal(tmp_path / "a.png", vae, np.zeros(2), np.ones(2), 3, labels=truth[:1])
    rows = [0] * 20 + [1] * 20 + [2] * 20
    assert given == [rows, rows + [0] * 10, [0] * 22, [2, 0, 1, 1], [2, 2, 0, 0, 1, 1, 1, 1], [2] * 6]


def test_what_is_decoded_is_the_label_s(ops):
    """Piece by piece, on the model: an image's values are those of its code and label alone."""
    vae = VAE((8, 8, 1), 2, ops, widths=SMALL, classes=3)
    z, truth = np.random.RandomState(0).randn(70, 2), np.arange(70) % 3
    images = figures.decode(vae, z, truth)
    one = figures.decode(vae, z[66:67], truth[66:67])
    np.testing.assert_allclose(images[66:67], one, atol=1e-6)
    assert np.abs(one - figures.decode(vae, z[66:67], [1])).max() > 1e-3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with pets.h5 (cats dark, dogs light), and run, a model of it that is given labels."""
    folder = tmp_path_factory.mktemp("labels")
    names = np.array(["cat", "dog"])[np.arange(60) % 2]
    images = np.random.RandomState(0).randint(0, 100, (60, 8, 8, 1)) + 150 * (np.arange(60) % 2)[:, None, None, None]
    with h5py.File(folder / "pets.h5", "w") as f:
        f["train/images"], f["test/images"] = images[:40].astype(np.uint8), images[40:].astype(np.uint8)
        f["train/labels"], f["test/labels"] = names[:40].astype("S"), names[40:].astype("S")
    done = run("--data", "pets.h5", "--labels", "--steps", 30, "--batch-size", 8, "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_commands_of_a_run_with_labels(trained):
    settings = json.loads((trained / "run" / "config.json").read_text())
    assert settings["label_names"] == ["cat", "dog"] and len(settings["labels_sha256"]) == 64
    assert png(trained / "run" / "samples.png") == (2 * 20 * 10, 2 * 2 * 10)
    done = run("sample", "run", cwd=trained)
    assert done.stdout == "20 images of each label in turn: cat, dog\nrun/samples.png\n"
    assert run("sample", "run", "--label", "dog", cwd=trained).stdout == "run/samples-dog.png\n"
    done = run("sample", "run", "--label", "cat", "--count", 3, cwd=trained)
    assert done.stdout == "run/samples-cat-count3-seed0.png\n"
    for command in ("reconstruct", "interpolate", "traverse", "encode"):
        done = run(command, "run", cwd=trained)
        assert done.returncode == 0, done.stderr
    for out in ("drawn", "drawn.npz"):
        assert run("sample", "run", "--count", 25, "--out", out, cwd=trained).stdout.endswith(f"dog\n{out}\n")
        split = given.read(trained / out, (8, 8, 1), None, False)
        np.testing.assert_array_equal(labels.places(split, ["cat", "dog"]), [0] * 20 + [1] * 5)
        np.testing.assert_array_equal(split.images, minivae.load(trained / "run").sample(25))
    done = run("resume", "run", "--steps", 32, cwd=trained)
    assert done.returncode == 0 and "going on from step 30" in done.stdout


@pytest.mark.parametrize("label, name", [("a b", "a b"), ("\u00e9", "\u00e9"), ("a/b", "a%2Fb"), ("..", "%2E%2E")])
def test_a_folder_for_each_label(tmp_path, label, name):
    export.export(tmp_path, np.zeros((1, 8, 8, 1), np.uint8), [label])
    assert [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.png")] == [f"{name}/0.png"]


def test_mistakes_with_labels(trained, tmp_path):
    refused("sample", "run", "--label", "cow", cwd=trained, says="cow is no label of this model, which knows cat, dog")
    with h5py.File(trained / "pets.h5") as f, h5py.File(tmp_path / "other.h5", "w") as other:
        for split in ("train", "test"):
            other[f"{split}/images"] = f[f"{split}/images"][()]
            other[f"{split}/labels"] = f[f"{split}/labels"][()][::-1]
    refused("resume", "run", "--data", tmp_path / "other.h5", "--steps", 99, cwd=trained, says="has other labels than")
    refused("--data", "pets.h5", "--from", "run", "--out", "new", cwd=trained,
            says="has label_names ['cat', 'dog'], and this run's would have []")
    np.save(tmp_path / "bare.npy", np.random.RandomState(0).randint(0, 256, (40, 8, 8, 1)).astype(np.uint8))
    refused("--data", "bare.npy", "--labels", "--out", "bare", cwd=tmp_path, says="bare.npy have no labels")
    assert not (tmp_path / "bare").exists()
    done = run("--data", "bare.npy", "--steps", 2, "--batch-size", 4, "--out", "bare", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    refused("reconstruct", trained / "run", "bare.npy", cwd=tmp_path, says="images of bare.npy have no labels")
    assert run("encode", trained / "run", "bare.npy", cwd=tmp_path).returncode == 0  # q(z|x) needs none
    refused("sample", "bare", "--label", "cat", cwd=tmp_path,
            says="cat is no label of this model, which was trained without --labels")


SIGMA = 0.5


@pytest.fixture
def exact(ops):
    """(vae, f): z does nothing and q(z|x) is the prior, so that every estimate is f(x, labels) = ln p(x|y), exactly."""
    vae = VAE((8, 8, 1), 2, ops, widths=SMALL, sigma=SIGMA, classes=3)
    for p in vae.params.trained:
        if p.name in ("enc/mean/gamma", "enc/var/gamma"):
            p.value[...] = 0
        if p.name == "enc/var/beta":
            p.value[...] = np.log(np.expm1(1 - 1e-5))
        if p.name == "gen/dense/w":
            p.value[:2] = 0
    x_hat = vae.decode(np.zeros((3, 2), np.float32), np.arange(3, dtype=np.int32)).astype(float)
    assert np.abs(x_hat[0] - x_hat[1]).max() > 0.1

    def log_p(x, truth):
        return -((x - x_hat[truth]) ** 2 / SIGMA**2 + np.log(2 * np.pi * SIGMA**2)).sum((1, 2, 3)) / 2

    return vae, log_p


def test_every_label_is_tried(exact, rng):
    vae, log_p = exact
    x = rng.uniform(-1, 1, (70, 8, 8, 1))
    model = Model(vae)
    frequency = np.array([0.5, 0.2, 0.3])
    device = model.device(x)
    joint = density_labels.log_joint(model, device, *model.posterior(device), numbered(70), frequency, 0, iter)
    expected = [np.log(frequency[label]) + log_p(x, np.full(70, label)) for label in range(3)]
    np.testing.assert_allclose(joint, expected, rtol=1e-5)


def test_images_that_a_device_sees_together_keep_their_labels(exact, rng):
    """As on a GPU; on a CPU it sees one at a time."""
    vae, log_p = exact
    truth = np.arange(9) % 3
    model = Model(vae, truth)
    model.batch = 12  # four images with three codes each
    x = rng.uniform(-1, 1, (9, 8, 8, 1))
    found = model.log_likelihood(model.device(x), rng.standard_normal((3, 9, 2)))
    np.testing.assert_allclose(found, np.tile(log_p(x, truth), (3, 1)), rtol=1e-5)
    model.batch = 4
    none = SimpleNamespace(normal=np.zeros, of=lambda rows: none)
    drawn = model.simulate(np.zeros((9, 2)), none)
    np.testing.assert_allclose(log_p(drawn, truth), -32 * np.log(2 * np.pi * SIGMA**2), rtol=1e-5)


def test_the_card_of_a_model_with_labels(exact, rng, tmp_path, monkeypatch):
    """Each image has its own label on every row; those of images that are left out shift no other."""
    monkeypatch.setattr(card, "NAIVE", 4)
    monkeypatch.setattr(card.estimates, "FIT_STEPS", 2)
    vae, log_p = exact
    names = ["ant", "bee", "cat"]
    splits = [Split(rng.integers(0, 256, (n, 8, 8, 1), np.uint8), rng.integers(0, 3, n), path="d", label_names=names)
              for n in (60, 40)]
    splits[1].images[5:9] = splits[0].images[:4]
    found = Dataset("d", *splits, [])
    run = Run(tmp_path, SimpleNamespace(seed=5, label_names=names))
    moving = vae.params.moving_statistics.copy()
    made = card.evaluate(run, vae, moving, found, 1, images=30, importance=2, ais_images=4, ais_chains=1, ais_steps=2,
                         seed=0)

    rows = [row for row in data.test_rows(40) if row not in range(5, 9)][:30]
    images, truth = found.test.images[rows], found.test.labels[rows]
    x = scaled(images, Noise(0, "pixels", list(data.hashes(images))))
    each = log_p(x, truth)
    nats = {part: {name: row["nats_per_image"] for name, row in made[part]["rows"].items()}
            for part in ("bounds", "annealed", "simulated", "labels")}
    assert [nats["bounds"]["iwae"], nats["labels"]["iwae_given"]] == pytest.approx([each.mean()] * 2, rel=1e-5)
    assert [nats["annealed"][name] for name in ("naive", "iwae")] == pytest.approx([each[:4].mean()] * 2, rel=1e-5)
    assert nats["annealed"]["ais"] == pytest.approx(each[:4].mean(), rel=1e-2)
    drawn = -32 * (1 + np.log(2 * np.pi * SIGMA**2))
    assert nats["simulated"]["ais"] == pytest.approx(drawn, abs=4 * np.sqrt(32 / 4))

    frequency = np.bincount(found.train.labels) / 60
    joint = np.stack([np.log(frequency[label]) + log_p(x, np.full(30, label)) for label in range(3)])
    assert nats["labels"]["iwae_summed"] == pytest.approx(np.log(np.exp(joint).sum(0)).mean(), rel=1e-5)
    figures = made["labels"]["figures"]
    assert figures["accuracy"] == (joint.argmax(0) == truth).mean()
    assert figures["accuracy_of_the_most_frequent_label"] == (truth == frequency.argmax()).mean()

    levels = found.train.images[:30]
    x = scaled(levels, Noise(0, "pixels", list(data.hashes(levels))))
    error = -2 * SIGMA**2 * (log_p(x, found.train.labels[:30]) / 64 + np.log(2 * np.pi * SIGMA**2) / 2)
    assert made["refitted_sigma"] == pytest.approx(np.sqrt(error.mean()), rel=1e-5)
