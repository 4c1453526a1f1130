"""What the documents say of the house: who imports whom, how long the lesson is, and that the README's lines run."""

import ast
import re
from pathlib import Path

import architecture
import lines
import numpy as np
import pytest
import readme

import run

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "minivae").rglob("*.py"))
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
ORDER = ["errors", "unix", "files", "ops", "noise", "parameters", "adam", "layers", "conditional", "gaussian",
         "spectrum", "sigmas", "vae", "gradcheck", "checks", "exercises", "images", "training", "density", "trained",
         "options", "commands", "__init__"]  # each may import itself and what stands before it


def place(module):
    return module.split(".")[1] if module.count(".") else "errors"


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("minivae."):
            yield node.module
        elif isinstance(node, ast.ImportFrom) and node.module == "minivae":
            yield from (f"minivae.{alias.name}" for alias in node.names if not alias.name.startswith("_"))


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_imports_what_stands_above_it(path):
    here = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for module in imported(path):
        assert ORDER.index(place(module)) <= ORDER.index(place(here)), module


def test_no_module_above_ops_asks_for_its_array_module():
    for path in PACKAGE:
        if "ops" not in path.parts:
            assert not re.search(r"\bis (not )?(np|numpy|cupy)\b|cupy", path.read_text()), path


def test_the_definition_and_the_lesson_are_short():
    length = {name: len((ROOT / name).read_text().splitlines()) for name in lines.LESSON}
    assert length["minivae/ops/plain.py"] <= 200
    assert len((ROOT / "minivae/ops/plain_sigmas.py").read_text().splitlines()) <= 100
    assert sum(length.values()) <= 850


@pytest.mark.parametrize("module, name", [(lines, "lesson"), (architecture, "architecture")])
def test_the_readmes_tables_are_what_their_scripts_write(module, name, monkeypatch, tmp_path):
    page = tmp_path / "README.md"
    page.write_text(README)
    monkeypatch.setattr(module, "write_between", lambda name, text: readme.write_between(name, text, page))
    module.main()
    assert page.read_text() == README


def test_the_readmes_model_runs():
    names = {}
    exec(BLOCKS[0], names)
    assert names["rec"].shape == names["kl"].shape == (64,) and names["adam"].t == 0  # ops.record counts steps


def test_the_readmes_trained_model_runs(tmp_path, monkeypatch, rng):
    monkeypatch.chdir(tmp_path)
    np.savez("images.npz", images=rng.integers(0, 256, (20, 32, 32, 3), np.uint8))
    assert run.main(["--data", "images.npz", "--steps", "1", "--out", "runs/housenumbers-1"]) == 0
    names = {}
    exec(BLOCKS[1], names)
    assert names["images"].shape == names["x_hat"].shape == (8, 32, 32, 3)
    assert names["images"].dtype == names["x_hat"].dtype == np.uint8
    assert names["mean"].shape == names["var"].shape == (8, 10) and names["bound"].shape == (8,)


def test_code_lines_leave_out_comments_and_docstrings():
    text = '"""Doc."""\n\n# comment\nx = 1  # here\n\n\ndef f():\n    """Two\n    lines."""\n    return """a\nb"""\n'
    assert lines.code_lines(text) == 4


def test_links_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "data" / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
