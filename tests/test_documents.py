"""The commands in the documents: each is run in a clean copy of the repository, or listed with the reason why not."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from minivae.options import COMMANDS, parse

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]
PROGRAMS = ("python", "pip ", "pytest", "ruff ", "git ", ".ci/", "mpirun ")

RUN = {  # a document's command: the same with small settings, on the copy's few images
    "python run.py": "python run.py --steps 2",
    "python run.py --help": "python run.py --help",
    "python run.py --labels --steps 1500": "python run.py --labels --steps 2",
    "python run.py COMMAND --help": "python run.py evaluate --help",
    "python run.py reconstruct RUN PATH": "python run.py reconstruct first data/housenumbers.h5",
    "python run.py evaluate RUN":
        "python run.py evaluate first --images 4 --importance 2 --ais-images 2 --ais-chains 2 --ais-steps 2",
    "python run.py score RUN [PATH]": "python run.py score first data/housenumbers.h5 --importance 2",
    "python benchmarks/housenumbers.py SVHN PAGE.png": "python benchmarks/housenumbers.py svhn page.png",
    "python benchmarks/training.py RUN ...": "python benchmarks/training.py first first",
    "python benchmarks/fluctuation.py RUN ...": "python benchmarks/fluctuation.py first",
    "python benchmarks/density.py RUN ...": "python benchmarks/density.py first",
    "python benchmarks/labels.py RUN": "python benchmarks/labels.py labelled",
    "python benchmarks/lattice.py RUN ...": "python benchmarks/lattice.py first",
    "python examples/claims.py": "python examples/claims.py 2",
    "python benchmarks/streaming.py": "python benchmarks/streaming.py --rounds 1 --steps 1",
    "python -m pytest -m long -s tests/test_reliability.py -k 200_kills":
        "python -m pytest -m long tests/test_reliability.py -k 200_kills --collect-only",
}
NOT_RUN = {
    ".ci/run does it": [
        "pip install -r requirements.txt", "pip install .", "ruff check .", "python run.py gradcheck",
        "python -m pytest", ".ci/run"],
    "it needs a GPU": [
        "pip install -r requirements-gpu.txt", 'pip install -r requirements.txt "cupy-cuda12x[ctk]>=14"',
        "python run.py --gpu", "python benchmarks/gpu_step.py", "python -m pytest -m gpu"],
    "test_ranks.py runs mpirun": ["pip install -r requirements-mpi.txt", "mpirun -n 4 python run.py"],
    "it takes long": [
        "python -m pytest -m long", "python examples/questions.py", "python examples/step_size.py",
        "python benchmarks/faults.py"],
    "another test does it": [
        "python run.py gradcheck --with mine.py", "python -m doctest docs/by_hand.md",
        "python -m doctest docs/gradients.md", "python -m pytest tests/test_ops.py tests/test_vae.py",
        "python benchmarks/scaling.py"],
    "it throws a reader's changes away": ["git checkout minivae"],
    "it needs PyTorch": ["pip install torch", "python benchmarks/cpu_step.py", "python benchmarks/ranks.py"],
    "it needs a run of that sigma, and takes long": [
        "python run.py --sigma spectrum --steps 400", "python examples/spectrum.py RUN"],
    "it downloads SVHN": ["python run.py --data svhn --steps 50000 --lr-end 1e-3"],
}
ALL_NOT_RUN = [command for some in NOT_RUN.values() for command in some]


def commands(text):
    """The commands of a Markdown text: lines of its sh and console blocks, and inline code that calls a program."""
    block = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
    found = []
    for language, body in block.findall(text):
        lines = body.replace("\\\n", " ").splitlines()
        if language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        if language in ("sh", "console"):
            found += [command for line in lines for command in re.sub(r"(^|\s)#.*", "", line).split("&&")]
    found += [code for code in re.findall(r"`([^`]+)`", block.sub("", text)) if code.startswith(PROGRAMS)]
    return {" ".join(command.split()) for command in found} - {""}


def test_commands_are_found():
    text = "`python\na` and `x`\n```sh\nb c && d   # e\n# f\ng \\\n  h\n```\n```console\n$ i\nj\n```\n```\nk\n```\n"
    assert commands(text) == {"python a", "b c", "d", "g h", "i"}


def test_every_command_is_run_or_has_a_reason_not_to_be():
    known = [*RUN, *ALL_NOT_RUN]
    assert set().union(*(commands(document.read_text()) for document in DOCUMENTS)) == set(known)
    assert len(known) == len(set(known))


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the repository with a few images as its housenumbers, a folder svhn of as many, and two runs."""
    copy = tmp_path_factory.mktemp("documents") / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(
        ".*", "*venv*", "__pycache__", "*.egg-info", "build", "runs", "*.h5", "*.mat"))
    images = np.random.RandomState(0).randint(0, 256, (100, 8, 8, 1)).astype(np.uint8)
    with h5py.File(copy / "data" / "housenumbers.h5", "w") as f:
        f["train/images"], f["test/images"] = images[:80], images[80:]
        f["train/labels"], f["test/labels"] = np.arange(80) % 10, np.arange(20) % 10
    images = np.random.RandomState(1).randint(0, 256, (32, 32, 3, 100)).astype(np.uint8)
    (copy / "svhn").mkdir()
    for split in ("train", "test"):
        savemat(copy / "svhn" / f"{split}_32x32.mat", {"X": images, "y": np.ones((100, 1), int)})
    execute(copy, "python run.py --steps 2 --batch-size 2 --out first")
    execute(copy, "python run.py --labels --steps 2 --batch-size 2 --out labelled")
    for run in ("first", "labelled"):
        execute(copy, RUN["python run.py evaluate RUN"].replace("first", run))
    return copy


def execute(folder, command):
    program, *arguments = shlex.split(command)
    assert program == "python"
    environment = {name: value for name, value in os.environ.items() if name != "MINIVAE_DATA"}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment | {"PYTHONPATH": str(folder)},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all((folder / argument).exists() for argument in arguments if argument.endswith(".png"))


@pytest.mark.parametrize("command", sorted(set(RUN.values()) - {RUN["python run.py evaluate RUN"]}))
def test_a_command_of_the_documents(copy, command):
    execute(copy, command)


def test_options_of_a_command_that_is_not_run():
    for command in ALL_NOT_RUN:
        if command.startswith("python run.py"):
            parse(shlex.split(command)[2:])


def test_the_readme_lists_every_command():
    listed = re.findall(r"^python run\.py \[?(\w+)\]?.* {2}", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert listed == list(COMMANDS)
