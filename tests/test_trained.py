"""A trained model in Python: arrays of any number of images in and out, and what `import minivae` costs."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minivae
from minivae.density.estimates import scaled
from minivae.errors import UserError
from minivae.images.data import hashes
from minivae.noise import Noise
from minivae.ops import numpy_ops
from minivae.trained import TrainedVAE
from minivae.vae import VAE, Widths

ROOT = Path(__file__).parent.parent
SHAPE = 8, 16, 3


@pytest.fixture
def model():
    """A small model whose x_hat stays within the grey levels, at a sigma of 13 of them."""
    return TrainedVAE(VAE(SHAPE, 4, numpy_ops, widths=Widths((4, 5, 6), 7, (8, 6, 5)), sigma=0.1))


def test_images_become_codes_and_codes_images(model, rng):
    """More than the model sees at once."""
    images = rng.integers(0, 256, (2 * numpy_ops.IMAGES_AT_ONCE + 3, *SHAPE), np.uint8)
    mean, var = model.encode(images)
    assert mean.dtype == var.dtype == np.float32 and mean.shape == var.shape == (len(images), 4)
    np.testing.assert_allclose(mean, model.vae.encode(scaled(images).astype(np.float32)), rtol=1e-3, atol=1e-5)
    x_hat = model.decode(mean)
    assert x_hat.dtype == np.uint8
    np.testing.assert_allclose(x_hat, (model.vae.decode(mean) + 1) * 127.5, atol=0.6)


def test_samples_are_decoded_from_the_prior(model):
    z = np.random.RandomState(5).randn(70, 4)
    np.testing.assert_array_equal(model.sample(70, seed=5), model.decode(z))


def test_draws_scatter_about_their_mean(model):
    """By sigma, pixel by pixel and image by image alike."""

    def noise_of(count, seed):
        return (model.sample(count, seed, noise=True) - model.sample(count, seed).astype(float)) / 127.5

    noise = noise_of(500, seed=1)
    count = noise.size
    assert abs(noise.mean()) < 4 * 0.1 / np.sqrt(count)
    assert abs(noise.std() / 0.1 - 1) < 4 / np.sqrt(2 * count) + 1e-3  # rounding to grey levels adds 1 / 12
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 4 / np.sqrt(noise[0].size)
    again = noise_of(9, seed=1)
    np.testing.assert_array_equal(again, noise[:9])
    assert abs(np.corrcoef(again.ravel(), noise_of(9, seed=2).ravel())[0, 1]) < 4 / np.sqrt(again.size)


def test_the_score_of_a_model_whose_latents_do_nothing(model, rng):
    """Where q(z|x) is the prior and z changes no image, every bound is ln p(x) itself."""
    for p in model.vae.params.trained:
        if p.name in ("enc/mean/gamma", "enc/var/gamma", "gen/dense/gamma"):
            p.value[...] = 0
        if p.name == "enc/var/beta":
            p.value[...] = np.log(np.expm1(1 - 1e-5))
    images = rng.integers(0, 256, (70, *SHAPE), np.uint8)
    pixels = scaled(images, Noise(0, "pixels", list(hashes(images))))
    error = pixels - model.vae.decode(np.zeros((1, 4), np.float32))
    log_p = -(error**2 / 0.02 + np.log(2 * np.pi * 0.01) / 2).sum((1, 2, 3))
    np.testing.assert_allclose(model.score(images, importance=20), log_p, rtol=1e-4)


@pytest.fixture
def given():
    """One that is given labels, off the weights that it starts with."""
    vae = VAE(SHAPE, 4, numpy_ops, widths=Widths((4, 5, 6), 7, (8, 6, 5)), sigma=0.1, classes=3)
    vae.params.values += 0.1 * np.random.RandomState(0).randn(len(vae.params.values)).astype(np.float32)
    return TrainedVAE(vae, ["ant", "bee", "7"])


def test_labels_are_given_by_name(given):
    """Each image has its own, whichever batch it is in; sample takes each in turn, or one."""
    z = np.random.RandomState(5).randn(70, 4)
    names = np.array(given.label_names)[np.arange(70) // 20 % 3]
    images = given.decode(z, names)
    np.testing.assert_array_equal(given.sample(70, seed=5), images)
    np.testing.assert_array_equal(given.decode(z[66:], ["ant"] * 4), images[66:])
    bees = given.sample(70, seed=5, label="bee")
    assert (bees == images).all((1, 2, 3)).tolist() == (names == "bee").tolist()
    np.testing.assert_array_equal(given.sample(9, label=7), given.decode(np.random.RandomState(0).randn(9, 4), [7] * 9))


def test_draws_and_scores_are_those_of_the_label(given):
    """A draw of p(x|z, y) scatters about y's mean, and no other label scores as it does."""
    x_hat, draws = (given.sample(70, noise=noise, label="bee").astype(float) for noise in (False, True))
    other = given.sample(70, label="ant")
    assert ((draws - x_hat) ** 2).mean() < 0.9 * ((draws - other) ** 2).mean()
    images = given.sample(70)
    names = np.array(given.label_names)[np.arange(70) // 20 % 3]
    scores = given.score(images, 5, labels=names)
    last = given.score(images[66:], 5, labels=names[66:])
    np.testing.assert_allclose(scores[66:], last)
    assert scores.mean() > given.score(images, 5, labels=np.roll(names, 20)).mean()


def test_labels_that_a_model_is_not_given(model, given):
    z = np.zeros((2, 4))
    for labels in (None, ["ant"]):
        with pytest.raises(UserError, match="give 2 of them, one for each"):
            given.decode(z, labels)
    with pytest.raises(UserError, match="cow is no label of this model, which knows ant, bee, 7"):
        given.sample(2, label="cow")
    with pytest.raises(UserError, match="ant is no label of this model, which was trained without --labels"):
        model.decode(z, ["ant", "ant"])


@pytest.mark.parametrize("images", [np.zeros((2, 8, 8, 3), np.uint8), np.zeros(SHAPE, np.uint8),
                                    np.zeros((2, *SHAPE)), np.zeros((0, *SHAPE), np.uint8)])
def test_images_of_another_shape_or_type(model, images):
    with pytest.raises(UserError, match=re.escape("give uint8 (N, 8, 16, 3)")):
        model.encode(images)
    with pytest.raises(UserError, match=re.escape("give uint8 (N, 8, 16, 3)")):
        model.score(images)


def test_importing_minivae_loads_nothing():
    code = "import minivae, sys; print('numpy' in sys.modules, minivae.load.__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False load\n", done


def test_a_run_that_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="holds no run"):
        minivae.load(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="requirements-gpu.txt"):
        minivae.load(tmp_path, gpu=True)
