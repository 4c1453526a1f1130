"""Stops, kills and damage: what a run keeps, and what its user reads."""

import dataclasses
import errno
import fcntl
import io
import json
import os
import pty
import resource
import shutil
import signal
import stat
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_train import TEST, config, trainer

from minivae import commands, files
from minivae.errors import UserError
from minivae.images import data
from minivae.training import checkpoint, figures
from minivae.training.loop import train
from minivae.training.runs import Run
from minivae.training.settings import Config
from minivae.training.statistics import estimated
from minivae.training.trainer import Trainer
from minivae.vae import Widths

ROOT = Path(__file__).parent.parent


@pytest.fixture
def digits(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (60, 8, 8, 1)).astype(np.uint8)
    np.savez(tmp_path / "digits.npz", train=images[:40], test=images[40:])
    return tmp_path


def start(folder, *arguments):
    return subprocess.Popen([sys.executable, ROOT / "run.py", *map(str, arguments)], cwd=folder, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


OPTIONS = ["--data", "digits.npz", "--steps", "100000", "--batch-size", "8", "--log-every", "1",
           "--eval-every", "100000", "--checkpoint-every", "2", "--out", "run"]


def start_training(folder, **changes):
    options = dict(zip(OPTIONS[::2], OPTIONS[1::2], strict=True)) | changes
    process = start(folder, *(word for pair in options.items() for word in pair))
    wait_for(folder / "run" / "checkpoint.h5", process)
    return process


def wait_for(path, process=None):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert not process or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number, log_every", [(signal.SIGINT, 1), (signal.SIGTERM, 1000), (signal.SIGHUP, 1)])
def test_a_signal_saves_draws_and_says_how_to_go_on(digits, number, log_every):
    process = start_training(digits, **{"--checkpoint-every": 7, "--log-every": log_every})
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert err == "\nstopping: saving and drawing\n"
    assert "stopped; go on with: python run.py resume run" in out and (digits / "run" / "samples.png").exists()
    if log_every == 1:
        check_rows(digits / "run", saved_step(digits / "run"))  # not one step lost


@pytest.mark.parametrize("pause", [0, 0.05, 0.3])
def test_a_second_sigint_loses_nothing(digits, pause):
    """What the answer to the first promises is done; the second one is answered too."""
    process = start_training(digits, **{"--checkpoint-every": 7})
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() + process.stderr.readline() == "\nstopping: saving and drawing\n"
    time.sleep(pause)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "\nstill saving and drawing\n", err
    assert "resume run" in out and (digits / "run" / "reconstructions.png").exists()
    check_rows(digits / "run", saved_step(digits / "run"))


def test_two_sigints_at_once(digits):
    process = start_training(digits)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopping: saving and drawing" in err and "error" not in err, err
    check_rows(digits / "run", saved_step(digits / "run"))


def test_nohup_is_respected(digits):
    """A signal that the process was told to ignore stays ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start_training(digits)
    finally:
        signal.signal(signal.SIGHUP, before)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    process.communicate()


def test_a_terminal_that_goes_away(digits):
    """Closing it sends SIGHUP, and whatever is written to it fails."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(digits)
        os.execv(sys.executable, [sys.executable, ROOT / "run.py", *OPTIONS])
    termios.tcsetwinsize(terminal, (24, 80))
    shown = b""
    while b"/100000 [" not in shown or not (digits / "run" / "checkpoint.h5").exists():
        shown += os.read(terminal, 2**16)
    os.close(terminal)
    os.waitpid(child, 0)
    check_rows(digits / "run", saved_step(digits / "run"))
    assert (digits / "run" / "reconstructions.png").exists()


def test_a_reader_that_goes_away(digits):
    """As `| head` does: the run saves and draws before it ends, as if by SIGPIPE."""
    process = start_training(digits)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 128 + signal.SIGPIPE and err == ""
    check_rows(digits / "run", saved_step(digits / "run"))
    assert (digits / "run" / "samples.png").exists()


@pytest.mark.parametrize("closed, status", [
    (">&-", 0), ("2>&-", 0), (">&- 2>&- <&-", 0), (">/dev/full", 2), ("2>/dev/full", 0)])
def test_output_that_cannot_be_written(digits, closed, status):
    """Without standard streams a run is as any other. On a full disk the first line ends it; resume goes on."""
    command = [sys.executable, str(ROOT / "run.py"), "--data", "digits.npz", "--steps", "6", "--batch-size", "8",
               "--log-every", "1", "--out", "run"]
    done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *command], cwd=digits, text=True,
                          capture_output=True)
    assert done.returncode == status, done
    if status:
        assert done.stderr.startswith("error: standard output cannot be written (No space left on device)")
        assert done.stderr.count("\n") == 1
    else:
        check_rows(digits / "run", 6)
        assert done.stderr == "" and saved_step(digits / "run") == 6


def test_output_that_fails_in_the_middle(ops, tmp_path, monkeypatch):
    """As that of a disk which has become full: the run is saved and drawn, then the error raised."""
    written = []

    class Full(io.StringIO):
        def write(self, text):
            written.append(text)
            if text.startswith("step      5"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run, t = Run.create(tmp_path / "run", "x", config(log_every=1)), trainer(ops, np.float32, log_every=1)
    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(OSError, match="No space left"):
        train(run, t, TEST)
    assert t.step_count == saved_step(run) == 5 and (run / "samples.png").exists()
    assert len([text for text in written if text.startswith("step")]) == 5


def test_a_signal_while_a_finished_run_is_drawn(ops, tmp_path, monkeypatch, capsys):
    """It has nothing to go on with."""
    run, t = Run.create(tmp_path / "run", "x", config(eval_every=10)), trainer(ops, np.float32)
    monkeypatch.setattr(figures, "draw_all", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    stopped = train(run, t, TEST)
    assert stopped == signal.SIGINT and t.step_count == 10
    assert commands.finish(run, t, stopped) == 130
    assert "go on" not in capsys.readouterr().out
    assert commands.finish(run, trainer(ops, np.float32), stopped) == 130
    assert f"go on with: python run.py resume {run.folder}" in capsys.readouterr().out


def test_training_in_a_thread(ops, tmp_path):
    """Where Python lets nobody handle signals."""
    run, t, found = Run.create(tmp_path / "run", "x", config()), trainer(ops, np.float32), []
    thread = threading.Thread(target=lambda: found.append(train(run, t, TEST)))
    thread.start()
    thread.join()
    assert found == [0] and saved_step(run) == 10


def saved_step(run):
    with h5py.File(run / "checkpoint.h5") as f:
        return int(f.attrs["step"])


def check_rows(run, last):
    steps = [int(line.split(",")[0]) for line in (run / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == list(range(1, last + 1))


def kills(digits, count):
    """kill -9 at random moments while every second step is saved: each time, resume loses at most two steps.

    Every fifth kill comes while the process starts. Prints what was lost.
    """
    rng, lost, early = np.random.default_rng(0), [], 0
    process = start_training(digits)
    for i in range(count):
        time.sleep(rng.uniform(0, 1.5))
        process.kill()
        process.communicate()
        made = len((digits / "run" / "metrics.csv").read_text().splitlines()) - 1
        process = start(digits, "resume", "run", "--steps", made + 400)
        if i % 5 == 4:
            early += 1
            continue
        line = process.stdout.readline()
        while line and "going on" not in line:
            line = process.stdout.readline()
        assert line, process.communicate()
        lost.append(made - int(line.split("step ")[1].split()[0]))
        assert 0 <= lost[-1] <= 2
    process.kill()
    process.communicate()
    process = start(digits, "resume", "run", "--steps", made + 6)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    check_rows(digits / "run", made + 6)
    none, one, two = np.bincount(lost, minlength=3)
    print(f"{count} kills, {early} of them at the start; lost steps: none {none} times, one {one}, two {two}")


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


@pytest.fixture(scope="module")
def original(ops, tmp_path_factory):
    run = Run.create(tmp_path_factory.mktemp("original") / "run", "x", config(steps=6))
    train(run, trainer(ops, np.float32, steps=6), TEST)
    return run.folder


@pytest.fixture
def saved(original, tmp_path):
    """A run with two checkpoints."""
    shutil.copytree(original, tmp_path / "run")
    return Run.open(tmp_path / "run")


def load(ops, run):
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
    (saved / "checkpoint-previous.h5").replace(saved / "checkpoint.h5")
    load(ops, saved)
    for cut in (0, 100, 600, 5000):
        (saved / "checkpoint.h5").write_bytes((saved / "checkpoint.h5").read_bytes()[:cut])
        with pytest.raises(UserError, match="start a new run"):
            load(ops, saved)


def test_a_checkpoint_of_another_model_changes_nothing(ops, saved):
    narrow = Trainer(config(), TEST, ops, np.float32, Widths((4, 5, 6), 7, (8, 6, 4)))
    changed = trainer(ops, np.float32, latent=5)
    for other, message in ((narrow, "another model"), (changed, "made with latent 4.*says 5")):
        before = other.vae.params.values.copy()
        with pytest.raises(UserError, match=message):
            checkpoint.load_model(saved / "checkpoint.h5", other.vae, other.config)
        with pytest.raises(UserError, match=message):
            checkpoint.load_training(saved / "checkpoint.h5", other)
        np.testing.assert_array_equal(other.vae.params.values, before)


def test_a_model_and_its_step(ops, saved):
    whole, model = trainer(ops, np.float32), trainer(ops, np.float32)
    checkpoint.load_training(saved / "checkpoint.h5", whole)
    assert checkpoint.load_model(saved / "checkpoint.h5", model.vae, saved.config)[0] == whole.step_count == 6
    np.testing.assert_array_equal(model.vae.params.values, whole.vae.params.values)
    with estimated(whole):
        np.testing.assert_array_equal(model.vae.params.moving_statistics, whole.vae.params.moving_statistics)


def test_a_model_to_start_from(ops, saved):
    """Its weights, and the statistics that training moves, not those re-estimated for test mode."""
    old, new, whole = (trainer(ops, np.float32) for _ in range(3))
    checkpoint.start_from(saved, old.vae, *checkpoint.load_model(saved / "checkpoint.h5", old.vae, saved.config), new)
    checkpoint.load_training(saved / "checkpoint.h5", whole)
    np.testing.assert_array_equal(new.vae.params.values, whole.vae.params.values)
    np.testing.assert_array_equal(new.vae.params.moving_statistics, whole.vae.params.moving_statistics)
    assert (old.vae.params.moving_statistics != whole.vae.params.moving_statistics).any()
    assert new.step_count == 0 and (new.adam.v == 0).all() and new.config.origin == f"{saved.folder}, step 6"


def test_any_number_of_stops_changes_no_bit(ops, tmp_path, monkeypatch):
    """Signals after steps 1, 2, 5 and 7, and a kill after 8 that comes before its checkpoint, against none."""
    monkeypatch.setattr(figures, "draw_all", lambda *_: None)
    straight, stopped = (Run.create(tmp_path / name, "x", config(steps=11, lr_end=0.0)) for name in "ab")
    train(straight, trainer(ops, np.float32, lr_end=0.0), TEST)
    for stop in (1, 2, 5, 7, None):
        t = trainer(ops, np.float32, lr_end=0.0)
        if stop != 1:
            checkpoint.load_training(stopped / "checkpoint.h5", t)
            stopped.forget_after(t.step_count)
        step = t._step

        def stopping(t=t, stop=stop, step=step):
            step()
            if t.step_count + 1 == stop:
                os.kill(os.getpid(), signal.SIGINT)

        t._step = stopping
        assert train(stopped, t, TEST) == (signal.SIGINT if stop else 0)
        if stop == 7:  # as a process leaves it that is killed while it logs step 8
            stopped.log({"step": 8, "seconds": 1.0, "train_loss": 9.0, "train_rec": 5.0, "train_kl": 4.0})
            with open(stopped / "metrics.csv", "a") as f:
                f.write("9,1")
    with h5py.File(straight / "checkpoint.h5") as a, h5py.File(stopped / "checkpoint.h5") as b:
        for name in checkpoint.training_arrays(t):
            np.testing.assert_array_equal(a[name], b[name])
        assert a.attrs["step"] == b.attrs["step"] == 11
    lines = [[line.split(",")[:1] + line.split(",")[2:] for line in (run / "metrics.csv").read_text().splitlines()]
             for run in (straight, stopped)]
    assert lines[0] == lines[1] and [line[0] for line in lines[0]] == ["step", "4", "5", "8", "10", "11"]


def test_a_checkpoint_describes_itself(saved):
    with h5py.File(saved / "checkpoint.h5") as f:
        settings = json.loads(f.attrs["config"])
        assert settings["train_sha256"] == "a" and settings["shape"] == [8, 8, 3]
        assert f.attrs["step"] == 6 and f.attrs["minivae"] and f.attrs["numpy"] == np.__version__
        assert f["parameters/enc/conv1/w"].shape == (3, 3, 3, 4)


def test_other_data_or_settings_are_refused(ops, saved):
    """Each of them, but for those that change no step."""
    others = dict(batch_size=15, latent=3, seed=1, kl="analytic", log_every=5, shape=(16, 8, 3), train_sha256="c",
                  test_sha256="c", sigma=0.5, origin="elsewhere, step 3", label_names=["a"], labels_sha256="c")
    free = dict(data="elsewhere", size=[8, 8], skip_damaged=True, steps=99, eval_every=3, checkpoint_every=4, lr=2e-3,
                lr_end=0.0, earlier_rates=[[6, 1e-3]])
    assert others.keys() | free.keys() == {field.name for field in dataclasses.fields(Config)}
    t = trainer(ops, np.float32)
    for name, value in others.items():
        t.config = config(**{name: value})
        with pytest.raises(UserError, match=f"made with {name} .* and config.json says .*; put .* back there"):
            checkpoint.load_training(saved / "checkpoint.h5", t)
    t.config = config(**free)
    checkpoint.load_training(saved / "checkpoint.h5", t)


def test_a_checkpoint_from_before_sigma_had_a_setting(ops, saved):
    """It was made with sigma 1, as one that holds it as text."""
    t, path = trainer(ops, np.float32), saved / "checkpoint.h5"
    for sigma in (None, "1"):
        settings = vars(config()) | {"sigma": sigma}
        if sigma is None:
            del settings["sigma"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint, "asdict", lambda _, settings=settings: settings)
            checkpoint.save(path, t, config(), 0)
        checkpoint.load_training(path, t)
        t.config.sigma = 0.5
        with pytest.raises(UserError, match="made with sigma 1.0, and config.json says 0.5"):
            checkpoint.load_training(path, t)
        t.config.sigma = 1.0


def test_a_checkpoint_is_read_back(ops, saved, monkeypatch):
    before = (saved / "checkpoint.h5").read_bytes()
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda self, content: write(self, bytes(content)[:-1] + b"?"))
    with pytest.raises(UserError, match="reads back otherwise"):
        checkpoint.save(saved / "checkpoint.h5", trainer(ops, np.float32), config(), 0)
    assert (saved / "checkpoint.h5").read_bytes() == before and not list(saved.folder.glob("*.part"))


def cut_checkpoints(ops, saved, count):
    path = saved / "checkpoint.h5"
    whole = path.read_bytes()
    for cut in np.linspace(0, len(whole) - 1, count).astype(int):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="damaged.*copy .*checkpoint-previous.h5 over it"):
            load(ops, saved)


def test_cut_checkpoints(ops, saved):
    cut_checkpoints(ops, saved, 6)


@pytest.mark.long
def test_50_cut_checkpoints(ops, saved):
    cut_checkpoints(ops, saved, 50)


def test_a_missing_checkpoint(ops, saved):
    (saved / "checkpoint.h5").unlink()
    with pytest.raises(UserError, match="missing.*copy .*checkpoint-previous.h5 over it"):
        load(ops, saved)
    (saved / "checkpoint-previous.h5").unlink()
    with pytest.raises(UserError, match=f"missing; the run has not saved one yet: python run.py resume {saved.folder}"):
        checkpoint.load_model(saved / "checkpoint.h5", trainer(ops, np.float32).vae, saved.config)


# Disks that take no more


@pytest.fixture
def disk(tmp_path):
    """A file system of 2 MB."""
    (tmp_path / "disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=755", "tmpfs", tmp_path / "disk"],
                      capture_output=True).returncode:
        pytest.skip("mounting takes root")
    yield tmp_path / "disk"
    subprocess.run(["umount", "--lazy", tmp_path / "disk"], check=True)


def go_on(ops, run):
    """Two steps more, a line for each; UserError or not, the checkpoint is whole, and says how far it came."""
    run = Run(run.folder, config(steps=8, log_every=1, checkpoint_every=1))
    failure = None
    try:
        t = trainer(ops, np.float32, log_every=1)
        checkpoint.load_training(run / "checkpoint.h5", t)
        run.forget_after(t.step_count)
        run.save_config()
        train(run, t, TEST)
    except UserError as e:
        failure = str(e)
    t = trainer(ops, np.float32, log_every=1)
    checkpoint.load_training(run / "checkpoint.h5", t)
    assert 6 <= t.step_count <= 8
    run.metrics()
    assert not list(run.folder.glob("*.part"))
    return failure


@pytest.fixture(scope="module")
def frequent(ops, tmp_path_factory):
    """A run of six steps that logged and saved each."""
    folder = tmp_path_factory.mktemp("frequent") / "run"
    run = Run.create(folder, "x", config(steps=6, log_every=1, checkpoint_every=1))
    train(run, trainer(ops, np.float32, log_every=1), TEST)
    return run


def test_a_full_disk(ops, frequent, disk):
    """Room for ever more of what is to be written: each write is the first to fail once."""
    failures = []
    for room in (0, 4, 8, 100, 200, 700):  # kB
        shutil.copytree(frequent.folder, disk / "run")
        with open(disk / "filler", "wb", buffering=0) as f, pytest.raises(OSError):
            while True:
                f.write(bytes(4096))
        os.truncate(disk / "filler", max(0, (disk / "filler").stat().st_size - room * 1024))
        failures.append(go_on(ops, Run(disk / "run", None)))
        shutil.rmtree(disk / "run")
        (disk / "filler").unlink()
    assert failures[-1] is None
    for failure in filter(None, failures):
        assert "No space left on device); make room" in failure and str(disk) in failure
    names = {Path(failure.split(" ")[2]).name for failure in filter(None, failures)}
    assert names == {"metrics.csv", "checkpoint.h5"}


def test_pictures_and_settings_on_a_full_disk(ops, frequent, disk):
    """They are smaller than a checkpoint, after which there would be room for them."""
    shutil.copytree(frequent.folder, disk / "run")
    run, t = Run.open(disk / "run"), trainer(ops, np.float32)
    with open(disk / "filler", "wb", buffering=0) as f, pytest.raises(OSError):
        while True:
            f.write(bytes(4096))
    before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    for name, write in {"config.json": run.save_config,
                        "samples.png": lambda: figures.draw_samples(run / "samples.png", t.vae),
                        "losses.png": lambda: figures.draw_losses(run / "losses.png", run.metrics()),
                        "metrics.csv": lambda: run.forget_after(3)}.items():
        with pytest.raises(UserError, match=f"cannot write .*{name} .No space left"):
            write()
    assert before == {path.name: path.read_bytes() for path in run.folder.iterdir()}


def test_a_limit_on_the_size_of_files(ops, frequent, tmp_path):
    """As a quota would have it, for users that may mount nothing."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (frequent / "metrics.csv").stat().st_size
    failures = []
    for limit in (0, 100, size, size + 20, 5000, 40_000, 2**24):
        shutil.copytree(frequent.folder, tmp_path / "copy")
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            failures.append(go_on(ops, Run(tmp_path / "copy", None)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        shutil.rmtree(tmp_path / "copy")
    assert failures[-1] is None and all("File too large" in failure for failure in failures[:-1])


def test_a_disk_that_may_only_be_read(ops, frequent, disk):
    shutil.copytree(frequent.folder, disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert "Read-only file system); make room, or make the folder" in go_on(ops, Run(disk / "run", None))
    with pytest.raises(UserError, match="cannot make the run directory"):
        Run.create(disk / "other", "x", config())


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_a_folder_of_another_user(ops, frequent, disk):
    shutil.copytree(frequent.folder, disk / "run")
    for folder in disk.parents[:3]:
        folder.chmod(0o755)
    os.seteuid(65534)
    try:
        assert "Permission denied); make room, or make the folder" in go_on(ops, Run(disk / "run", None))
        with pytest.raises(UserError, match="cannot make the run directory.*--out"):
            Run.create(disk / "other", "x", config())
        with pytest.raises(UserError, match="cannot write .*a.h5"):
            data.write_hdf5(disk / "a.h5", "x", [("train", np.zeros((2, 8, 8, 3), np.uint8), None)])
    finally:
        os.seteuid(0)


# File systems that lack an operation


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF,
                                    errno.ENOLCK])
def test_a_file_system_without_links_locks_and_synced_folders(ops, tmp_path, monkeypatch, capfd, number):
    """Training goes on by renaming, and says once what is not promised there."""
    def unsupported(*_):
        raise OSError(number, os.strerror(number))

    def sync(descriptor, whole=os.fsync):
        return unsupported() if stat.S_ISDIR(os.fstat(descriptor).st_mode) else whole(descriptor)

    monkeypatch.setattr(os, "link", unsupported)
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(fcntl, "flock", unsupported)
    run = Run.create(tmp_path / "run", "x", config(checkpoint_every=2))
    train(run, trainer(ops, np.float32), TEST)
    notes = capfd.readouterr().err.splitlines()
    assert len(notes) == 3 and all(note.startswith(f"note: the file system of {run.folder} ") for note in notes)
    for word in ("no locks", "no hard links", "cannot flush"):
        assert sum(word in note for note in notes) == 1
    for name, step in (("checkpoint.h5", 10), ("checkpoint-previous.h5", 8)):
        t = trainer(ops, np.float32)
        checkpoint.load_training(run / name, t)
        assert t.step_count == step
    assert not list(run.folder.glob("*.part"))


@pytest.mark.parametrize("module, name", [(os, "link"), (os, "fsync"), (fcntl, "flock")])
def test_other_errors_are_not_taken_for_a_missing_operation(ops, tmp_path, monkeypatch, module, name):
    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    run = Run.create(tmp_path / "run", "x", config(checkpoint_every=2))
    monkeypatch.setattr(module, name, broken)
    with pytest.raises((UserError, OSError), match="Input/output error"):
        if name == "flock":
            run.lock()
        train(run, trainer(ops, np.float32), TEST)


@pytest.mark.parametrize("name", ["checkpoint.h5", "config.json", "metrics.csv"])
def test_a_file_that_may_not_be_read_is_not_damaged(ops, saved, monkeypatch, name):
    read = Path.read_bytes, Path.read_text

    def refusing(read):
        def refuse(path, *arguments):
            if path.name == name:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return read(path, *arguments)
        return refuse

    monkeypatch.setattr(Path, "read_bytes", refusing(read[0]))
    monkeypatch.setattr(Path, "read_text", refusing(read[1]))
    with pytest.raises(UserError, match=f"cannot read .*{name} .Permission denied.; make it readable"):
        Run.open(saved.folder).forget_after(6)
        load(ops, saved)


def test_a_folder_that_cannot_be_written_is_told_at_once(disk):
    files.refuse_unwritable(disk)
    assert not list(disk.iterdir())
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(UserError, match="cannot write .*disk .Read-only file system.; make"):
        files.refuse_unwritable(disk)


# A run directory that somebody has been at


@pytest.mark.parametrize("name", ["metrics.csv", "samples.png", "thesis.tex", "film.part", ".hidden"])
def test_a_folder_with_anything_in_it_is_refused(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"is not empty .{name} is in it.; choose"):
        Run.create(tmp_path, "x", config())
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


def test_an_empty_folder_is_fine(tmp_path):
    assert (Run.create(tmp_path, "x", config()) / "config.json").exists()


WRONG = {
    "data": [None, 1, []], "steps": [0, -1, 1.5, "many", None, True, 2**63, 1e3], "batch_size": [1, 0, "1", 2.0, [64]],
    "latent": [0, -1, None, "1.5", {}], "lr": [0, -1, "0", None, float("nan"), float("inf"), True, 10**400],
    "seed": [-1, 2**32, 0.5, "-1"], "kl": ["exact", None, 1, []], "log_every": [0, 10**7, "0", None],
    "eval_every": [0, None, "x", False], "checkpoint_every": [0, -3, 2.5],
    "train_sha256": [None, 3], "test_sha256": [[]],
    "shape": [None, 3, [], [8, 8], [8, 8, 2], [8, 9, 3], [0, 8, 3], ["8", 8, 3], [8.0, 8, 3], [8, 8, 3, 1], "883"],
    "lr_end": [-1e-9, "nan", "x", [], True],
    "sigma": ["0", "-1", "nan", "inf", "wide", 0, None, "", [], True],
    "size": ["33", "x", 32, [32], [32, 33], [32.0, 32], [0, 8], [True, 8]], "skip_damaged": [None, 0, "true"],
    "earlier_rates": [None, {}, "", [3], [[3]], [[3, 0]], [[-1, 0.1]], [[3, 0.1, 0]], [[0.5, 0.1]]],
    "origin": [None, 3],
    "label_names": ["cat", None, ["cat", 1], ["cat", "cat"], {}], "labels_sha256": [None, 3],
}


def test_every_field_of_the_configuration(saved):
    path = saved / "config.json"
    good = json.loads(path.read_text())
    assert set(WRONG) <= set(good)
    for name, values in WRONG.items():
        for value in values:
            path.write_text(json.dumps(good | {name: value}))
            with pytest.raises(UserError, match=f"config.json: {name} .* is not .*put the right value back"):
                Run.open(saved.folder)
        if name in ("data", *list(good)[:list(good).index("sigma")]):  # the others have defaults
            path.write_text(json.dumps({k: v for k, v in good.items() if k != name}))
            with pytest.raises(UserError, match="not a run's configuration"):
                Run.open(saved.folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"null", b'{"steps": 1}', b"\xff\xfe", b"[" * 100_000,
                                     b'{"extra": 1}'])
def test_a_file_that_is_no_configuration(saved, content):
    (saved / "config.json").write_bytes(content)
    with pytest.raises(UserError, match="not a run's configuration.*it must be JSON"):
        Run.open(saved.folder)


def test_a_configuration_with_a_byte_flipped(saved):
    path, rng = saved / "config.json", np.random.default_rng(0)
    whole, found = path.read_bytes(), 0
    for _ in range(300):
        broken = bytearray(whole)
        broken[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        try:
            Run.open(saved.folder)
        except UserError:
            found += 1
    assert found > 100


@pytest.mark.parametrize("damage", [
    lambda lines: ["step,loss", *lines[1:]],
    lambda lines: [lines[0], "x" + lines[1], *lines[2:]],
    lambda lines: [lines[0], lines[1] + ",1", *lines[2:]],
    lambda lines: [lines[0], "\0" * 40, *lines[1:]],
    lambda lines: [lines[0], lines[1].replace("4", "nan", 1), *lines[2:]],
    lambda lines: [lines[0], "", *lines[1:]],
    lambda lines: [""],
])
def test_damaged_metrics(saved, damage):
    path = saved / "metrics.csv"
    path.write_text("\n".join(damage(path.read_text().splitlines())) + "\n")
    before = path.read_bytes()
    with pytest.raises(UserError, match="metrics.csv is damaged .line.*correct it"):
        saved.forget_after(6)
    assert path.read_bytes() == before


def test_missing_metrics(saved):
    (saved / "metrics.csv").unlink()
    with pytest.raises(UserError, match="metrics.csv is missing"):
        saved.forget_after(6)


def test_metrics_of_bytes_that_are_no_text(saved):
    (saved / "metrics.csv").write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match="metrics.csv is damaged"):
        saved.metrics()


def test_a_run_is_never_overwritten_even_without_its_configuration(saved):
    (saved / "config.json").unlink()
    with pytest.raises(UserError, match="is not empty"):
        Run.create(saved.folder, "x", config())


def test_a_number_may_be_a_text(saved):
    """As sigma is in the files of older versions."""
    path = saved / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"sigma": "0.3", "latent": "4", "lr": 1}))
    found = Run.open(saved.folder).config
    assert (found.sigma, found.latent, found.lr) == (0.3, 4, 1.0) and type(found.lr) is float
    del settings["sigma"]
    path.write_text(json.dumps(settings))
    assert Run.open(saved.folder).config.sigma == 1.0


def test_what_a_killed_process_left_is_cleared(tmp_path):
    """By the next one that writes the same file; what a living process is writing, and all else, stays."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    cleared = [tmp_path / f"a.h5.{pid}.part" for pid in (dead.pid, os.getpid(), 10**20)]
    others = (f"a.h5.{os.getppid()}.part", "a.h5.1.part", f"b.h5.{dead.pid}.part", "a.h5.x.part", "a.h5.1x.part",
              "film.part")
    kept = [tmp_path / name for name in others]
    for path in cleared + kept:
        path.write_bytes(b"half")
    files.write_text(tmp_path / "a.h5", "whole")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a.h5", *kept])
