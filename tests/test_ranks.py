"""Several ranks under mpirun: the run of one process, to rounding; its files, its one line, its exit status."""

import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from ranks_worker import CASES, cases
from test_cli import process
from test_reliability import check_rows, saved_step, wait_for
from test_train import config

from minivae.errors import UserError
from minivae.ops import numpy_ops
from minivae.training.batches import Batches
from minivae.training.ranks import Alone, Ranks
from minivae.training.runs import Run

ROOT = Path(__file__).parent.parent
RUN, WORKER = ROOT / "run.py", ROOT / "tests" / "ranks_worker.py"
MPIRUN = shutil.which("mpirun")
SETTINGS = {  # of Open MPI: it may run as root, and more ranks than there are cores
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
TINY = ["--batch-size", 8, "--log-every", 1, "--eval-every", 100000, "--checkpoint-every", 2, "--out", "run"]
under_mpirun = pytest.mark.skipif(not (MPIRUN and find_spec("mpi4py")), reason="needs requirements-mpi.txt")


def is_mpich():
    return "HYDRA" in subprocess.run([MPIRUN, "--version"], capture_output=True, text=True).stdout


def start(*commands, cwd):
    """mpirun of commands, each what one rank gives to python."""
    words = []
    for command in commands:
        words += [":"] * bool(words) + ["-n", "1", sys.executable, *map(str, command)]
    path = ":".join(str(ROOT / folder) for folder in (".", "tests", "benchmarks"))
    return subprocess.Popen([MPIRUN, *words], cwd=cwd, env=os.environ | SETTINGS | {"PYTHONPATH": path}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def done(*commands, cwd):
    return ended(start(*commands, cwd=cwd))


def ended(process):
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()  # ranks that wait for each other for ever, with it
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def refused(*commands, cwd, says, status=2):
    """mpirun ends with that status, and one line of ours says that; the launcher may add some of its own."""
    found = done(*commands, cwd=cwd)
    errors = [line for line in found.stderr.splitlines() if line.startswith(("error", "Traceback"))]
    assert found.returncode == status and len(errors) == 1 and says in errors[0], found.stderr


@pytest.fixture
def digits(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (60, 8, 8, 1)).astype(np.uint8)
    np.savez(tmp_path / "digits.npz", train=images[:40], test=images[40:])
    return tmp_path


@pytest.fixture(scope="module")
def by_one():
    return cases(Alone(), CASES)


def compare(path, expected, tolerance):
    with np.load(path) as found:
        for name in expected.keys() & set(found):
            atol = tolerance * np.abs(expected[name]).max()
            np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=atol, err_msg=name)
        return dict(found)


@under_mpirun
@pytest.mark.parametrize("ranks, some", [(1, ["sample"]), (2, CASES), (3, ["sample", "spectrum"])],
                         ids=["one", "two", "three"])
def test_the_run_is_that_of_one_process(tmp_path, by_one, ranks, some):
    """Batches of 16, which three ranks cannot divide evenly. The bits are those of a second run, and of every rank."""
    found = done(*ranks * [[WORKER, tmp_path / "found.npz", "on_host", *some]], cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    found = compare(tmp_path / "found.npz", by_one, 1e-10)
    assert {f"{case}: losses" for case in some} <= found.keys()
    assert found["gpu"] == "0" and int(found["threads"]) == max(1, len(os.sched_getaffinity(0)) // ranks)


@under_mpirun
def test_kernels_and_the_stand_in_of_nccl(tmp_path, by_one):
    found = done(*2 * [[WORKER, tmp_path / "found.npz", "on_device"]], cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "sample: losses" in compare(tmp_path / "found.npz", by_one, 1e-9)


@under_mpirun
def test_a_checkpoint_of_three_ranks_goes_on_on_one_and_back(digits):
    """Steps 1 and 2 on three ranks, 3 on one, 4 on two: as four on one."""
    train = [RUN, "--data", "digits.npz", *TINY]
    found = done(*3 * [[*train, "--steps", 2]], cwd=digits)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("step      2") == found.stdout.count("samples.png") == 1
    assert process("resume", "run", "--steps", 3, cwd=digits).returncode == 0
    found = done(*2 * [[RUN, "resume", "run", "--steps", 4]], cwd=digits)
    assert found.returncode == 0 and found.stdout.startswith("digits: 40 training"), found.stderr
    assert process(*train[1:], "--steps", 4, "--out", "alone", cwd=digits).returncode == 0
    together, alone = (Run.open(digits / folder).metrics() for folder in ("run", "alone"))
    for mine, theirs in zip(together, alone, strict=True):
        assert mine["step"] == theirs["step"] and mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)


@under_mpirun
def test_every_figure_of_the_card_is_that_of_one_process(digits):
    """Two ranks share three images and, for AIS, one."""
    assert process("--data", "digits.npz", *TINY, "--steps", 2, cwd=digits).returncode == 0
    settings = {"--images": 3, "--importance": 2, "--ais-images": 1, "--ais-chains": 2, "--ais-steps": 2}
    evaluate = ["evaluate", "run", *(word for setting in settings.items() for word in setting)]
    assert process(*evaluate, cwd=digits).returncode == 0
    alone = (digits / "run" / "density.json").read_bytes()
    (digits / "run" / "density.json").unlink()
    found = done(*2 * [[RUN, *evaluate]], cwd=digits)
    assert found.returncode == 0 and found.stdout.count("density.json") == 1, found.stderr
    assert (digits / "run" / "density.json").read_bytes() == alone
    score = ["score", "run", "digits.npz", "--importance", 2]
    assert process(*score, "--out", "alone.csv", cwd=digits).returncode == 0
    found = done(*2 * [[RUN, *score, "--out", "shared.csv"]], cwd=digits)
    assert found.returncode == 0 and found.stdout.count("shared.csv") == 1, found.stderr
    assert (digits / "shared.csv").read_bytes() == (digits / "alone.csv").read_bytes()


@under_mpirun
@pytest.mark.parametrize("number, to", [(signal.SIGINT, "all"), (signal.SIGTERM, "one")])
def test_a_signal_saves_draws_and_says_how_to_go_on(digits, number, to):
    """It comes to mpirun, which hands it on, or to any rank."""
    if to == "all" and not is_mpich():
        pytest.skip("Open MPI hands no signal on")
    process = start(*2 * [[RUN, "--data", "digits.npz", *TINY, "--steps", 100000]], cwd=digits)
    wait_for(digits / "run" / "checkpoint-previous.h5", process)
    os.kill(process.pid if to == "all" else ranks_of(process)[1], number)
    found = ended(process)
    assert found.returncode == 128 + number, found.stderr
    assert found.stderr.count("stopping: saving and drawing") == (to == "all") and "error" not in found.stderr
    assert found.stdout.count("stopped; go on with: python run.py resume run") == 1
    assert (digits / "run" / "samples.png").exists()
    check_rows(digits / "run", saved_step(digits / "run"))  # not one step lost


@under_mpirun
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_all(digits, rank):
    process = start(*2 * [[RUN, "--data", "digits.npz", *TINY, "--steps", 100000]], cwd=digits)
    wait_for(digits / "run" / "checkpoint-previous.h5", process)
    ranks = ranks_of(process)
    os.kill(ranks[rank], signal.SIGKILL)
    assert ended(process).returncode in (9, 128 + 9)
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    step = saved_step(digits / "run")
    found = done(*2 * [[RUN, "resume", "run", "--steps", step + 2]], cwd=digits)
    assert found.returncode == 0, found.stderr
    check_rows(digits / "run", step + 2)


def ranks_of(process):
    """The process numbers of mpirun's ranks, in order."""
    ranks = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "environ").read_bytes().split(b"\0")
            if is_descendant(int(folder.name), process.pid) and str(RUN).encode() in (folder / "cmdline").read_bytes():
                environment = dict(word.split(b"=", 1) for word in words if b"=" in word)
                rank = environment.get(b"OMPI_COMM_WORLD_RANK") or environment.get(b"PMI_RANK")
                if rank:
                    ranks[int(rank)] = int(folder.name)
        except OSError:  # it has ended, or belongs to another user
            continue
    return [ranks[rank] for rank in sorted(ranks)]


def is_descendant(pid, of):
    while pid > 1 and pid != of:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid == of


@under_mpirun
def test_an_error_ends_all_with_one_line(digits):
    good, missing = ([RUN, "--data", data, *TINY, "--steps", 100000] for data in ("digits.npz", "missing.npz"))
    refused(missing, missing, missing, cwd=digits, says="missing.npz")
    refused(good, missing, cwd=digits, says="missing.npz")
    refused(*2 * [[RUN, "--stepz", 3]], cwd=digits, says="unknown argument --stepz")
    refused(*3 * [[*good, "--batch-size", 2]], cwd=digits, says="2 images cannot be shared among 3 ranks")
    refused(*2 * [[RUN, "sample", "run"]], cwd=digits, says="sample is for one process")
    assert not (digits / "run").exists()


def in_step_three(rank, what):
    """What python is given to train as run.py does, but for `what` on this rank at the end of step 3."""
    return ["-c", f"""if True:
        import os, runpy, sys
        from minivae.ops import numpy_ops
        from minivae.training import ranks
        record = numpy_ops.record
        def broken(rec, kl, t, history):
            if t[0] == 2 and ranks.rank_of_launch() == {rank}:
                {what}
            record(rec, kl, t, history)
        numpy_ops.record = broken
        sys.argv = {["run.py", "--data", "digits.npz", *map(str, TINY)]}
        runpy.run_path({str(RUN)!r}, run_name="__main__")
    """]


@under_mpirun
@pytest.mark.parametrize("what, status, says", [("MemoryError", 2, "out of memory"), ("KeyError", 1, "Traceback")])
def test_an_error_of_one_rank_in_the_middle_of_a_run(digits, what, status, says):
    """A mistake in the program shows its traceback."""
    refused(*2 * [in_step_three(1, f"raise {what}")], cwd=digits, says=says, status=status)
    assert saved_step(digits / "run") == 2


@under_mpirun
def test_standard_output_on_a_full_disk(digits):
    """Rank 0 alone writes to it; all stop together, saved and drawn."""
    full = in_step_three(0, "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)")
    refused(full, full, cwd=digits, says="standard output cannot be written")
    assert saved_step(digits / "run") == 3 and (digits / "run" / "samples.png").exists()
    check_rows(digits / "run", 3)


@under_mpirun
def test_a_step_that_is_not_finite_is_that_of_one_process(digits):
    """Rank 0 takes the whole batch again, alone."""
    options = ["--data", "digits.npz", *TINY, "--lr", "1e30", "--steps", 100]
    alone = process(*options, "--out", "alone", cwd=digits)
    refused(*2 * [[RUN, *options]], cwd=digits, says=alone.stderr.split(";")[0])
    with np.load(digits / "run" / "not-finite.npz") as mine, np.load(digits / "alone" / "not-finite.npz") as theirs:
        for name in theirs:
            np.testing.assert_array_equal(mine[name], theirs[name])


def test_without_mpirun_mpi_is_not_imported():
    code = "import sys, run; assert run.main(['--no-such-option']) == 2 and 'mpi4py' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


class Some(Ranks):
    """One of several ranks that never meet."""

    def __init__(self, rank, size):
        self.rank = rank
        self.size = size


@pytest.mark.parametrize("count, size", [(64, 3), (16, 16), (7, 2), (5, 1)])
def test_shards_follow_each_other_and_are_even(count, size):
    rows = [range(count)[Some(rank, size).shard(count)] for rank in range(size)]
    assert [i for some in rows for i in some] == list(range(count))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


def test_more_ranks_than_images():
    with pytest.raises(UserError, match="start mpirun with -n 2"):
        Some(0, 3).shard(2)


@pytest.mark.parametrize("streamed", [True, False])
def test_each_rank_takes_its_own_images_of_a_batch(rng, monkeypatch, streamed):
    """Streamed in chunks, it reads no others; together they are the batch of one process."""
    images = rng.integers(0, 256, (100, 8, 8, 3), np.uint8)
    monkeypatch.setattr(numpy_ops, "free_memory", lambda: 0 if streamed else np.inf)
    monkeypatch.setattr("minivae.training.batches.CHUNK_BYTES", 5000)
    found = []
    for ranks in (Some(0, 3), Some(1, 3), Some(2, 3), Alone()):
        shard = ranks.shard(16)
        batches = Batches(images, config(), numpy_ops, shard)
        x = np.zeros((shard.stop - shard.start, 8, 8, 3))
        for step in range(7):
            batches.prepare(step)
            batches.gather(np.array([step]), x)
        assert not streamed or len(batches.device_images) == batches.index.size
        found.append(x)
    np.testing.assert_array_equal(np.concatenate(found[:3]), found[3])
