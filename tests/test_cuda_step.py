"""Everything above the operations on the kernels, under the emulator: it takes what NumPy takes and finds the same.

Arrays are those of emulator/device.py, which like CuPy's do not mix with NumPy's.
"""

import numpy as np
import pytest
from emulator import device, emulator
from launches import Recorder
from rounded import Rounded
from test_train import TEST, config, dataset, trainer

from minivae import checks
from minivae.density import card, estimates
from minivae.errors import UserError
from minivae.images import stream
from minivae.images.data import load, write_hdf5
from minivae.noise import Noise, numbered
from minivae.ops import cuda_module, cuda_ops, numpy_ops, plain
from minivae.ops.cuda_module import address
from minivae.training import checkpoint, figures
from minivae.training.evaluation import Evaluation
from minivae.training.loop import train
from minivae.training.runs import Run
from minivae.training.trainer import Trainer
from minivae.vae import Widths

SIGMAS = ["1", "0.3", "optimal", "learned", "pixel", "spectrum"]
NAMES = ["ant", "bee", "cat"]
LABELS = (np.arange(100) % 3).astype(np.int32)
ODD, EVEN = Widths((4, 5, 6), 7, (8, 6, 5)), Widths((4, 8, 12), 8, (8, 12, 4))  # EVEN: vectors, tensor cores


@pytest.fixture(autouse=True)
def on_the_emulator():
    if emulator.WHY_NOT:
        pytest.skip(emulator.WHY_NOT)
    cuda_module.use(device, device.RawModule)
    with emulator.lane_order(2):
        yield


def move_off(vae):
    """gamma, beta, biases and weights of 0 to where no gradient is 0: Adam would follow the sign of its rounding."""
    rng = np.random.default_rng(1)
    for p in vae.params.trained:
        if len(p.shape) == 1 or not p.value.any():
            p.value += vae.ops.xp.asarray((0.2 * rng.standard_normal(p.shape)).astype(vae.dtype))


def state(trainer):
    params, host = trainer.vae.params, trainer.ops.to_host
    arrays = {p.name: p.value for p in params.trained + params.state}
    arrays |= {f"d {p.name}": p.grad for p in params.trained}
    arrays |= {"x": trainer.x, "eps": trainer.eps, "m": trainer.adam.m, "v": trainer.adam.v, "t": trainer.adam.t,
               "history": trainer.history, "x_hat": trainer.vae.likelihood.x_hat, "z": trainer.vae.posterior.z}
    return {name: host(array).copy() for name, array in arrays.items()}


def compare(dtype, widths, steps, tolerance, reference=numpy_ops, **changes):
    """Every array, in its Frobenius norm; in float32 all but the weights, for which Adam's m and v speak.

    Adam's first step moves a weight by lr, up or down, however small its gradient: by rounding alone if that is 0.
    """
    found = []
    for ops in (reference, cuda_ops):
        given = LABELS if "label_names" in changes else None
        t = Trainer(config(**changes), dataset().train.images, ops, dtype, widths, given)
        move_off(t.vae)
        for _ in range(steps):
            t.step()
        test_labels = None if given is None else given[: len(TEST)]
        found.append(state(t) | {"test losses": Evaluation(t.vae, TEST, 0, test_labels).losses()})
    weights = {p.name for p in t.vae.params.trained} if dtype == np.float32 else set()
    for name in found[0].keys() - weights:
        expected = found[0][name]
        error, size = np.linalg.norm(found[1][name] - expected), np.linalg.norm(expected)
        assert error <= tolerance * max(size, 1e-3), f"{name}: {error / size}"


@pytest.mark.parametrize("kl", ["sample", "analytic"])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_three_steps_are_numpy_s(kl, sigma):
    """Losses, activations, gradients, moments, parameters, moving statistics, then test mode."""
    compare(np.float64, ODD, 3, 1e-9, kl=kl, sigma=sigma)


@pytest.mark.parametrize("widths, sigma", [(ODD, "1"), (EVEN, "1"), (EVEN, "spectrum")],
                         ids=["odd", "even", "spectrum"])
def test_three_steps_with_labels_are_numpy_s(widths, sigma):
    compare(np.float64, widths, 3, 1e-9, sigma=sigma, label_names=NAMES)


@pytest.mark.parametrize("widths, sigma", [(ODD, "1"), (EVEN, "1"), (EVEN, "spectrum")],
                         ids=["odd", "even", "spectrum"])
@pytest.mark.parametrize("precision, reference, tolerance", [("fp32", numpy_ops, 2e-5), ("tf32", Rounded(), 6e-3)],
                         ids=["fp32", "tf32"])
def test_the_first_step_in_float32(widths, sigma, precision, reference, tolerance, monkeypatch):
    """Sums come in another order: 1e-5 of an array's norm at most. In tf32 that changes the last of a few factors' 11
    bits as well: 1e-6 to 4e-3 measured. Products that round nothing are up to 6e-2 away, where the leaky ReLU of a unit
    near 0 takes its other slope; against them the tolerance would have to allow for that.
    """
    monkeypatch.setattr(cuda_module, "precision", precision)
    compare(np.float32, widths, 1, tolerance, reference, sigma=sigma)


@pytest.mark.parametrize("widths", [ODD, EVEN], ids=["odd", "even"])
@pytest.mark.parametrize("kl, sigma, train", [
    ("sample", 1.0, True), ("analytic", 0.3, True), ("analytic", "optimal", True), ("sample", "learned", True),
    ("analytic", "pixel", True), ("sample", "optimal", False), ("sample", "spectrum", True)])
def test_every_gradient_is_the_definition_s(kl, sigma, train, widths):
    """Of x, z and each parameter; test_vae holds the definition's to finite differences."""
    case = checks.Case((8, 16, 3), 3, widths, kl, sigma, train)
    expected, found = (checks.model_rows(ops, case, latent=3) for ops in (plain, cuda_ops))
    assert checks.check("on the GPU", expected, found, cuda_ops.to_host, differences=False)


def test_gradcheck(capsys, monkeypatch):
    """What `run.py gradcheck --gpu` does, at a small size."""
    tiny = checks.REFERENCE._replace(shape=(8, 8, 1), batch=2, widths=ODD)
    monkeypatch.setattr(checks, "REFERENCE", tiny)
    monkeypatch.setattr(checks, "MANY_PIECES", tiny._replace(batch=7))
    monkeypatch.setattr(checks, "SMALL_CASES", checks.SMALL_CASES[:1])
    assert checks.run(cuda_ops)
    assert "gen/tconv2/w" in capsys.readouterr().out


@pytest.mark.parametrize("sigma", ["1", "spectrum"])
def test_two_runs_give_the_same_bits(sigma):
    a, b = ({}, {})
    for found in (a, b):
        t = trainer(cuda_ops, np.float32, sigma=sigma)
        for _ in range(3):
            t.step()
        found |= state(t)
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name], name)


def test_a_falling_learning_rate_is_numpy_s():
    reference, t = (trainer(ops, steps=5, lr_end=0.0) for ops in (numpy_ops, cuda_ops))
    for _ in range(5):
        reference.step()
        t.step()
    assert cuda_ops.to_host(t.adam.lr)[0] == reference.adam.lr[0] == 8e-4
    np.testing.assert_allclose(cuda_ops.to_host(t.vae.params.values), reference.vae.params.values, rtol=0, atol=1e-9)


@pytest.mark.parametrize("first, second", [(numpy_ops, cuda_ops), (cuda_ops, numpy_ops)], ids=["to GPU", "to CPU"])
def test_a_checkpoint_crosses_devices(tmp_path, first, second):
    """Saved after step 6 on one device, trained to 10 on the other: as if on one."""
    run, straight = Run.create(tmp_path / "run", "x", config(steps=6)), trainer(numpy_ops)
    train(run, trainer(first, steps=6), TEST)
    other = trainer(second)
    checkpoint.load_training(run / "checkpoint.h5", other)
    run.config.steps = 10
    run.forget_after(6)
    train(run, other, TEST)
    for _ in range(10):
        straight.step()
    np.testing.assert_allclose(second.to_host(other.vae.params.values), straight.vae.params.values, rtol=0, atol=1e-8)
    assert [row["step"] for row in run.metrics()] == [4, 5, 6, 8, 10]
    assert (run / "samples.png").exists() and (run / "reconstructions.png").exists()


def test_pictures_and_the_density_card(tmp_path, monkeypatch):
    """The rest of the commands, once each: they keep host and device apart."""
    monkeypatch.setattr(estimates, "FIT_STEPS", 2)
    monkeypatch.setattr(card, "NAIVE", 2)
    monkeypatch.setattr(cuda_ops, "ROWS_TOGETHER", 8)  # the emulator takes long for a card's 1,024
    monkeypatch.setattr(card, "draw", lambda *_: None)  # works on the host, and slowly
    run, t = Run.create(tmp_path / "run", "x", config(steps=1)), trainer(cuda_ops, np.float32, sigma="pixel")
    t.step()
    settings = dict(images=8, importance=2, ais_images=2, ais_chains=1, ais_steps=2, seed=0)
    found = card.evaluate(run, t.vae, t.vae.params.moving_statistics.copy(), dataset(), 1, **settings)
    rows = [row for part in ("bounds", "annealed", "simulated") for row in found[part]["rows"].values()]
    assert np.isfinite([row["nats_per_image"] for row in rows]).all()
    figures.draw_interpolation(run / "interpolation.png", t.vae, TEST)


@pytest.mark.parametrize("sigma", ["pixel", "spectrum"])
def test_draws_are_numpy_s(sigma):
    z = np.random.default_rng(0).standard_normal((3, 4))
    found = []
    for ops in (numpy_ops, cuda_ops):
        t = trainer(ops, sigma=sigma)
        move_off(t.vae)
        noise = Noise(0, "simulated pixels", numbered(3))
        found.append(ops.to_host(t.vae.draw(ops.xp.asarray(z), noise)))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_failure_seen_late_stops_the_run(tmp_path):
    """Looked for when something is logged, then found by taking the steps again, as on the CPU."""
    messages = []
    for ops in (numpy_ops, cuda_ops):
        run, t = Run.create(tmp_path / ops.__name__, "x", config(log_every=3)), trainer(ops, np.float32, log_every=3)
        update = t.adam.update

        def explode(first=None, t=t, update=update):
            t.adam.lr[...] = 1e-3 if t.step_count < 1 else 1e30
            update(first)

        t.adam.update = explode
        with pytest.raises(UserError, match="step 3 is not finite, first in") as e:
            train(run, t, TEST)
        messages.append(str(e.value).split(";")[0])
        with np.load(run / "not-finite.npz") as batch:
            np.testing.assert_array_equal(batch["images"], t.batches.images[t.batches.draw(0)[2]])
    assert messages[0] == messages[1]


@pytest.mark.parametrize("host, card", [(1000, 2**40), (2**40, 20_000), (1000, 1000)], ids=["host", "card", "both"])
def test_images_that_do_not_fit_are_streamed(tmp_path, monkeypatch, host, card):
    """A chunk of them at a time on the device, with the same bits as all of them there."""
    images = dataset().train.images
    write_hdf5(tmp_path / "a.h5", "test", [("train", images, None), ("test", images[:30] ^ 1, None)])
    found = []
    for memory, room in ((2**40, 2 * images.nbytes), (host, card)):
        monkeypatch.setattr(stream, "memory", lambda memory=memory: memory)
        monkeypatch.setattr(device.cuda.runtime, "memGetInfo", lambda room=room: (room, 2**40))
        streamed = load(str(tmp_path / "a.h5"), None).train.images
        t = Trainer(config(log_every=2, label_names=NAMES), streamed, cuda_ops, widths=ODD, labels=LABELS)
        place = address(t.batches.buffer.array)
        for step in range(9):
            if step == 4:
                t.batches.next = {}  # as when steps are taken again
            t.step()
        assert address(t.batches.buffer.array) == place
        found.append(state(t) | {"labels": cuda_ops.to_host(t.labels).copy()})
    assert isinstance(t.batches.images, stream.Streamed) == (host == 1000)
    assert t.batches.device_images is t.batches.buffer.array and len(t.batches.device_images) < len(images)
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name], found[1][name], name)


def test_capture_runs_once_records_once_then_replays():
    recorder = Recorder()
    cuda_module.use(device, recorder.module, stream=recorder.stream())
    calls = []
    replay = cuda_ops.capture(lambda: calls.append(recorder.capturing))
    for _ in range(3):
        replay()
    assert calls == [False, True]


def test_a_step_that_fails_ends_its_capture():
    """Or else the stream would take nothing any more."""
    recorder = Recorder()
    cuda_module.use(device, recorder.module, stream=recorder.stream())

    def step():
        if recorder.capturing:
            raise KeyboardInterrupt

    replay = cuda_ops.capture(step)
    replay()
    with pytest.raises(KeyboardInterrupt):
        replay()
    assert not recorder.capturing and not recorder.streams and not cuda_module._streams


@pytest.mark.parametrize("sigma", ["1", "spectrum"])
def test_a_step_allocates_nothing_once_it_is_warm(monkeypatch, sigma):
    """What a captured graph needs: every array that it names exists already, and lives on."""
    t = Trainer(config(sigma=sigma, label_names=NAMES), dataset().train.images, cuda_ops, widths=ODD, labels=LABELS)
    t.step()
    for name in ("zeros", "full", "asarray", "asnumpy", "ascontiguousarray", "_device"):
        monkeypatch.setattr(device, name, None)
    t.device_step()


@pytest.mark.parametrize("mistake", [
    lambda a: a + np.zeros(2), lambda a: np.zeros(2) + a, lambda a: np.vdot(a, a), lambda a: np.concatenate([a, a]),
    lambda a: a.__setitem__(0, np.zeros(1)), lambda a: a.__setitem__(slice(None), np.zeros(2)),
    lambda a: a[np.array([0])], lambda a: cuda_ops.add(a, np.zeros(2)), lambda a: device.asnumpy(np.zeros(2))])
def test_the_stand_in_is_as_strict_as_cupy(mistake):
    a = device.zeros(2, np.float64)
    with pytest.raises(TypeError):
        mistake(a)
    cuda_ops.add(a, device.full(2, 1.5, np.float64) + a[:1])
    assert float(a.sum()) == 3 and device.asnumpy(a).tolist() == [1.5, 1.5] and type(a[0]) is device.ndarray
