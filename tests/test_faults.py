"""Faults that real projects shipped, each planted here by a few lines, and which kind of check sees
it (docs/faults.md).

The checks are tests of this suite, called with the faulty operations. benchmarks/faults.py writes
the page's table; the tests here plant every fault again and hold the table to what they find.
"""

import contextlib
import io
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import test_density
import test_gaussian
import test_layers
import test_ops
import test_vae
from scipy import stats
from scipy.special import expit

from minivae import checks
from minivae.density import estimates
from minivae.gaussian import Likelihood
from minivae.images import data
from minivae.layers import Dense
from minivae.noise import Noise, numbered
from minivae.ops import plain
from minivae.ops.geometry import Geometry
from minivae.parameters import Parameters
from minivae.vae import Generator

PAGE = Path(__file__).parent.parent / "docs" / "faults.md"
Fault = namedtuple("Fault", "name source plant")
FAULTS = []


def fault(name, source):
    """Registers plant(ops, patch): it replaces operations of the namespace ops, or patches what
    stands elsewhere.
    """

    def register(plant):
        FAULTS.append(Fault(name, source, plant))
        return plant

    return register


@contextlib.contextmanager
def planted(plant):
    """plain's operations with the fault among them."""
    with pytest.MonkeyPatch.context() as patch:
        ops = SimpleNamespace(**vars(plain))
        plant(ops, patch)
        yield ops


# The loss
@fault("the variance used as the standard deviation of z", "rachtsingh/ibp_vae#3")
def variance_as_sd(ops, patch):
    def latent(mean, s, eps, analytic, z, var, kl):
        plain.latent(mean, s, eps, analytic, z, var, kl)
        right = z.copy()
        z[...] = mean + var * eps
        if not analytic:
            kl += (z**2 - right**2).sum(1) / 2  # -ln p(z), at the z that was drawn

    def latent_dx(dz, mean, s, eps, analytic, scale, z, var, dmean, ds):
        plain.latent_dx(dz, mean, s, eps, analytic, scale, z, var, dmean, ds)
        through_z = dz if analytic else dmean
        ds += through_z * eps * (1 - 0.5 / np.sqrt(var)) * expit(s)

    ops.latent = latent
    ops.latent_dx = latent_dx


@fault("the KL's logarithm with the wrong sign", "FluxML/model-zoo#147")
def sign_of_the_logarithm(ops, patch):
    def latent(mean, s, eps, analytic, z, var, kl):
        plain.latent(mean, s, eps, analytic, z, var, kl)
        kl += np.log(var).sum(1)

    def latent_dx(dz, mean, s, eps, analytic, scale, z, var, dmean, ds):
        plain.latent_dx(dz, mean, s, eps, analytic, scale, z, var, dmean, ds)
        ds += scale / var * expit(s)

    ops.latent = latent
    ops.latent_dx = latent_dx


@fault("the KL averaged over latents, not summed", "keras-team/keras-io#270")
def mean_over_latents(ops, patch):
    def latent(mean, s, eps, analytic, z, var, kl):
        plain.latent(mean, s, eps, analytic, z, var, kl)
        kl /= z.shape[1]

    def latent_dx(dz, mean, s, eps, analytic, scale, z, var, dmean, ds):
        plain.latent_dx(dz, mean, s, eps, analytic, scale / z.shape[1], z, var, dmean, ds)

    ops.latent = latent
    ops.latent_dx = latent_dx


@fault("the reconstruction averaged over pixels, not summed", "y0ast/VAE-Torch#11")
def mean_over_pixels(ops, patch):
    def tanh_gaussian(a, b, x, log_sigma, scale, x_hat, rec, da, db):
        plain.tanh_gaussian(a, b, x, log_sigma, scale / x[0].size, x_hat, rec, da, db)
        rec /= x[0].size

    def log_sigma_dx(rec, log_sigma, size, scale, dlog_sigma):
        plain.log_sigma_dx(rec * size, log_sigma, size, scale / size, dlog_sigma)

    right = Likelihood.dx
    ops.tanh_gaussian = tanh_gaussian
    ops.log_sigma_dx = log_sigma_dx
    patch.setattr(Likelihood, "dx", lambda self: right(self) / self.x[0].size)


@fault("half the gradient of ln sigma's own term", "y0ast/VAE-Torch#5")
def half_a_gradient(ops, patch):
    def log_sigma_dx(rec, log_sigma, size, scale, dlog_sigma):
        plain.log_sigma_dx(rec, log_sigma, size, scale, dlog_sigma)
        dlog_sigma -= scale * size * len(rec) / 2

    ops.log_sigma_dx = log_sigma_dx


@fault("no floor under the variance", "mllam/neural-lam#537")
def no_floor(ops, patch):
    patch.setattr(plain, "VAR_FLOOR", 0)


@fault("softplus as ln(1 + exp(s)), which overflows", "rushter/MLAlgorithms#30")
def overflowing_softplus(ops, patch):
    def logaddexp(a, b):
        return np.log(np.exp(a) + np.exp(b))

    patch.setattr(plain, "np", SimpleNamespace(**vars(np) | {"logaddexp": logaddexp}))


# The noise and the first weights
@fault("noise of standard deviation 0.01, not 1", "keras-team/keras#4211")
def little_noise(ops, patch):
    def normal(seed, stream, t, out):
        plain.normal(seed, stream, t, out)
        out *= 0.01

    ops.normal = normal


@fault("the same noise at every step", "pytorch/pytorch#5059")
def constant_noise(ops, patch):
    ops.normal = lambda seed, stream, t, out: plain.normal(seed, stream, 0 * t, out)


@fault("fresh noise in the backward pass", "openai/guided-diffusion#167")
def fresh_noise(ops, patch):
    rng = np.random.default_rng(0)

    def latent_dx(dz, mean, s, eps, *rest):
        plain.latent_dx(dz, mean, s, rng.standard_normal(eps.shape).astype(eps.dtype), *rest)

    ops.latent_dx = latent_dx


@fault("a truncated normal that is not widened", "keras-team/keras#8048")
def narrow_weights(ops, patch):
    right = Parameters.weight
    patch.setattr(
        Parameters, "weight", lambda self, name, shape, fan: right(self, name, shape, 1.3 * fan)
    )


# Layers
@fault("symmetric padding at stride 2", "vtjeng/MIPVerify.jl#23")
def symmetric_padding(ops, patch):
    patch.setattr(Geometry, "_before", lambda self, size, out: (self.kernel - 1) // 2)


@fault("one of two gradients of a value used twice is lost", "TrenTorch/TrenTorch#182")
def lost_gradient(ops, patch):
    ops.add = lambda total, term: None


@fault("batch norm's moments taken for constants in backward", "mlpack/mlpack#1923")
def constant_moments(ops, patch):
    def batch_norm_dx(dy, x, moments, gamma, beta, slope, train, *rest):
        plain.batch_norm_dx(dy, x, moments, gamma, beta, slope, False, *rest)

    ops.batch_norm_dx = batch_norm_dx


@fault("Bessel's factor in the moving variance", "pytorch/pytorch#1410")
def bessel(ops, patch):
    def batch_norm(x, moments, gamma, beta, slope, y, moving=None, decay=1):
        plain.batch_norm(x, moments, gamma, beta, slope, y)
        if moving is not None:
            rows = x.size // x.shape[-1]
            plain.moving_average(moving, moments * [[1], [rows / (rows - 1)]], decay)

    ops.batch_norm = batch_norm


@fault("moving statistics that never move", "pkmital/tensorflow_tutorials#8")
def unmoved(ops, patch):
    ops.batch_norm = lambda x, moments, gamma, beta, slope, y, *_: plain.batch_norm(
        x, moments, gamma, beta, slope, y
    )


@fault("momentum taken for decay: 0.01, not 0.99", "r9y9/tacotron_pytorch#19")
def momentum(ops, patch):
    def batch_norm(x, moments, gamma, beta, slope, y, moving=None, decay=1):
        plain.batch_norm(x, moments, gamma, beta, slope, y, moving, 1 - decay)

    ops.batch_norm = batch_norm


@fault("batch norm's eps 1e-5, not 1e-3", "gzuidhof/nn-transfer#3")
def another_eps(ops, patch):
    patch.setattr(plain, "BN_EPS", 1e-5)


@fault("samples decoded in training mode", "csinva/gan-vae-pretrained-pytorch#2")
def training_mode(ops, patch):
    right = Generator.forward
    patch.setattr(Generator, "forward", lambda self, z, train: right(self, z, True))


# Adam
@fault("Adam's eps inside the bias correction", "pytorch/pytorch#22628")
def eps_inside(ops, patch):
    correction = np.empty(1)

    def adam_rate(lr, t, beta1, beta2, rate):
        plain.adam_rate(lr, t, beta1, beta2, rate)
        correction[0] = np.sqrt(1 - beta2 ** (t[0] + 1))

    def adam(values, grads, m, v, rate, beta1, beta2, eps):
        plain.adam(values, grads, m, v, rate, beta1, beta2, eps * float(correction[0]))

    ops.adam_rate = adam_rate
    ops.adam = adam


@fault("Adam's bias correction without the power t", "eriklindernoren/ML-From-Scratch#35")
def no_power(ops, patch):
    ops.adam_rate = lambda lr, t, *rest: plain.adam_rate(lr, 0 * t, *rest)


# The evaluation
@fault("the mean of weights without the largest taken out", "tskit-dev/tsdate#171")
def underflow(ops, patch):
    patch.setattr(estimates, "log_mean_exp", lambda log_w: np.log(np.exp(log_w).mean(0)))


@fault("the pixels' scale left out of the density", "phlippe/uvadlc_notebooks#57")
def no_scale(ops, patch):
    patch.setattr(
        estimates, "bits_per_dim", lambda nats, size: -np.asarray(nats) / (size * np.log(2))
    )


@fault("test images that were trained on", "zalandoresearch/fashion-mnist#44")
def seen_images(ops, patch):
    patch.setattr(data, "unseen", lambda images, train: list(range(len(images))))


# Checks: each takes the operations and fails, whatever the exception, if it sees the fault.
def gradcheck(ops):
    """What `python run.py gradcheck` does, on three small models and the odd sizes."""
    case = checks.SMALL_CASES[0]._replace(shape=(8, 8, 1))
    cases = [case, case._replace(sigma="learned", kl="analytic"), case._replace(train=False)]
    with contextlib.redirect_stdout(io.StringIO()):
        for rows in (*(checks.model_rows(ops, case) for case in cases), checks.odd_rows(ops)):
            assert checks.check("", rows, rows, ops.to_host)


def test_noise_is_standard_and_new_at_each_step(ops=plain):
    eps = np.empty((2, 50_000))
    for t, row in enumerate(eps):
        ops.normal(0, 1, np.array([t]), row)
    np.testing.assert_allclose(eps.mean(1), 0, atol=5 / 50_000**0.5)
    np.testing.assert_allclose(eps.var(1), 1, atol=5 * (2 / 50_000) ** 0.5)
    assert abs(np.corrcoef(eps)[0, 1]) < 5 / 50_000**0.5


@pytest.mark.parametrize("analytic", [False, True])
def test_the_loss_is_the_exact_density(analytic, ops=plain):
    """x = w z + 0.3 noise with orthogonal rows of w: p(z|x) is a diagonal normal, and with it
    for q rec + kl = -ln p(x) - (D/2) ln 2 pi, at every draw with the sampled KL and on
    average with the analytic one.
    """
    rng = np.random.default_rng(0)
    n, size, sigma = 4000, 6, 0.3
    w = 0.25 * np.linalg.qr(rng.standard_normal((size, 2)))[0].T
    x = np.tile(rng.standard_normal(2) @ w + sigma * rng.standard_normal(size), (n, 1))
    posterior_var = 1 / (1 + (w**2).sum(1) / sigma**2)
    mean = x @ w.T / sigma**2 * posterior_var
    s = np.tile(np.log(np.expm1(posterior_var - 1e-5)), (n, 1))
    eps, z, var, a = np.empty_like(mean), np.empty_like(mean), np.empty_like(mean), np.empty_like(x)
    kl, rec = np.empty((2, n))
    ops.normal(0, 1, np.array([0]), eps)
    ops.latent(mean, s, eps, analytic, z, var, kl)
    ops.dense(z, w, a)
    image = n, 1, 2, 3
    x_hat, da = np.empty((2, *image))
    ops.tanh_gaussian(
        np.arctanh(a).reshape(image),
        np.zeros(3),
        x.reshape(image),
        np.log([sigma]),
        1 / n,
        x_hat,
        rec,
        da,
        np.empty(3),
    )
    log_p = stats.multivariate_normal(np.zeros(size), w.T @ w + sigma**2 * np.eye(size)).logpdf(
        x[0]
    )
    error = rec + kl + log_p + size / 2 * np.log(2 * np.pi)
    np.testing.assert_allclose(
        error.mean() if analytic else error, 0, atol=5 * error.std() / n**0.5 + 1e-10
    )


def test_importance_sampling_is_exact_in_many_dimensions():
    """ln p(x) of a linear-Gaussian model of 900 values, more than a thousand nats below zero."""
    rng = np.random.default_rng(0)
    model = test_density.LinearGaussian(rng, size=900, latent=1, sigma=0.9)
    x = model.simulate(rng.standard_normal((2, 1)), Noise(3, "simulated pixels", numbered(2)))
    var = np.full((2, 1), 2 * model.covariance[0, 0])
    noise = Noise(0, "IWAE", numbered(2))
    log_w = estimates.importance(model, x, model.posterior(x), var, 300, noise)
    np.testing.assert_allclose(estimates.log_mean_exp(log_w), model.log_p(x), atol=0.1)


def test_training_images_are_told_from_new_ones():
    images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    assert data.unseen(images, images[1:3]) == [0, 3]


COLUMNS = {
    "gradients": [gradcheck],
    "moments": [
        test_noise_is_standard_and_new_at_each_step,
        test_gaussian.test_z_is_drawn_from_the_density_in_the_kl,
        test_layers.test_initial_weights,
        test_layers.test_batch_norm_modes,
    ],
    "TensorFlow": [test_vae.test_three_steps_of_tensorflow, test_ops.test_tensorflow_convolutions],
    "density": [
        test_the_loss_is_the_exact_density,
        test_importance_sampling_is_exact_in_many_dimensions,
        test_density.test_bits_of_known_densities,
    ],
    "by hand": [
        test_gaussian.test_extreme_variances_stay_finite,
        test_vae.test_encode_and_decode_do_not_depend_on_the_batch,
        test_training_images_are_told_from_new_ones,
    ],
}
ARGUMENTS = {  # beside the operations, in the order of the parameters
    test_layers.test_initial_weights: {
        "make": lambda p: Dense(p, "d", 200, 300),
        "fan": 200,
        "shape": (200, 300),
    },
    test_ops.test_tensorflow_convolutions: {"case": "conv0"},
    test_the_loss_is_the_exact_density: {"analytic": True},
    test_gaussian.test_extreme_variances_stay_finite: {"dtype": np.float64, "analytic": False},
}


def fails(check, ops):
    """Whether the check sees the fault."""
    known = {"ops": ops, "rng": np.random.default_rng(7)} | ARGUMENTS.get(check, {})
    names = check.__code__.co_varnames[: check.__code__.co_argcount]
    try:
        with np.errstate(all="ignore"):
            check(**{name: known[name] for name in names})
    except AssertionError:
        return True
    return False


def seen(plant):
    """({column: whether it sees the fault}, the name of the first check that does)."""
    with planted(plant) as ops:
        found = {
            column: [check for check in some if fails(check, ops)]
            for column, some in COLUMNS.items()
        }
    first = [check for some in found.values() for check in some][:1]
    return {column: bool(some) for column, some in found.items()}, first[
        0
    ].__name__ if first else None


def row(some_fault):
    """The page's row: the fault, where it was found, a mark for each column, the first check
    that sees it.
    """
    marks, first = seen(some_fault.plant)
    owner, number = some_fault.source.split("#")
    link = f"[{some_fault.source}](https://github.com/{owner}/issues/{number})"
    return [
        some_fault.name,
        link,
        *("yes" if mark else "" for mark in marks.values()),
        f"`{first}`",
    ]


def rows_of_the_page():
    table = PAGE.read_text().split("<!-- faults -->")[1].split("<!-- /faults -->")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {cells[0]: cells for cells in rows}


def test_right_operations_pass_every_check():
    found, first = seen(lambda ops, patch: None)
    assert not any(found.values()) and first is None


@pytest.mark.parametrize("some_fault", FAULTS, ids=[f.plant.__name__ for f in FAULTS])
def test_a_fault_is_seen_where_the_page_says(some_fault):
    """All cells but the picture's, which the script finds by training."""
    page = rows_of_the_page()[some_fault.name]
    found = row(some_fault)
    assert "yes" in found and page[:-2] + page[-1:] == found


def test_the_page_lists_every_fault():
    rows = rows_of_the_page()
    assert list(rows) == [f.name for f in FAULTS] and len(rows) >= 16
    unseen_by_gradients = [name for name, cells in rows.items() if cells[2] != "yes"]
    assert len(unseen_by_gradients) >= 5


def test_the_script_writes_the_page(tmp_path, monkeypatch, capsys):
    import faults  # which imports this module

    page = tmp_path / "faults.md"
    page.write_text("<!-- faults -->\n<!-- /faults -->\n")
    monkeypatch.setattr(faults, "PAGE", page)
    monkeypatch.setattr(faults, "SEEDS", 2)
    monkeypatch.setattr(faults, "FAULTS", [f for f in FAULTS if f.plant is unmoved])
    monkeypatch.setattr(faults, "images", lambda: np.random.default_rng(0).integers(0, 256, (140, 16, 16, 1), np.uint8))
    faults.main(steps=2)
    text = page.read_text()
    assert "| moving statistics that never move | [pkmital" in text
    assert "1 of the 1 pass the gradient check. Pictures are of models after 2 steps." in text
    assert page.with_suffix(".png").stat().st_size > 5000
    assert "moving statistics" in capsys.readouterr().out


def test_a_picture_is_seen_if_it_lies_outside_what_seeds_give():
    import faults

    right = [(1.0, 4.0), (1.2, 5.0)]
    assert faults.differs(None, right)
    for numbers, seen in (((1.1, 4.5), False), ((1.45, 4.5), False), ((1.55, 4.5), True), ((1.1, 3.0), True)):
        assert faults.differs(numbers, right) == seen
