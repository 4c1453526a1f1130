"""What the tests of the mathematics see: one-line faults are put into the code, and the tests are run on each.

    python benchmarks/mutants.py [COUNT] [SEED]

draws COUNT (30) faults at random from all that change one operator, one constant or one comparison of the files below,
and prints each with the test that catches it. A survivor is either harmless or a gap; its line is printed to be judged.
"""

import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = [f"minivae/{name}.py" for name in (
    "ops/plain", "ops/plain_sigmas", "ops/numpy_ops", "ops/numpy_conv", "ops/numpy_norm", "ops/numpy_toom_cook",
    "ops/philox", "ops/geometry", "layers", "gaussian", "sigmas", "vae", "parameters", "adam", "gradcheck")]
TESTS = [f"tests/test_{name}.py" for name in (
    "philox", "ops", "gaussian", "sigma", "layers", "vae", "fast_ops", "toom_cook", "train")]
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
             ast.Pow: ast.Mult, ast.Mod: ast.FloorDiv, ast.MatMult: ast.Mult}
COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
               ast.Is: ast.IsNot, ast.IsNot: ast.Is}
SECONDS = 600  # for the tests of one fault; a fault that makes them hang is seen


def places(tree):
    """The nodes that can be changed. A negative constant has its sign changed only: reshape takes -1 and -2 alike."""
    signed = {id(node.operand) for node in ast.walk(tree) if isinstance(node, ast.UnaryOp)}
    for node in ast.walk(tree):
        if id(node) in signed:
            continue
        if ((isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in OPERATORS)
                or (isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS)
                or (isinstance(node, ast.Constant) and type(node.value) in (int, float))
                or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub))):
            yield node


def change(node):
    match node:
        case ast.BinOp() | ast.AugAssign():
            node.op = OPERATORS[type(node.op)]()
        case ast.Compare():
            node.ops[0] = COMPARISONS[type(node.ops[0])]()
        case ast.UnaryOp():
            node.op = ast.UAdd()
        case ast.Constant():
            node.value += 1


def mutant(name, number):
    """(line number, the line, its text with the fault, the whole file with it)."""
    text = (ROOT / name).read_text()
    tree = ast.parse(text)
    node = list(places(tree))[number]
    statement = min((s for s in ast.walk(tree) if isinstance(s, ast.stmt) and s.lineno <= node.lineno <= s.end_lineno),
                    key=lambda s: s.end_lineno - s.lineno)
    change(node)
    line = text.splitlines()[node.lineno - 1].strip()
    return node.lineno, line, " ".join(ast.unparse(statement).split())[:120], ast.unparse(tree)


def first_failure(folder):
    """The test that fails first, or None."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *TESTS]
    try:
        done = subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True,
                              text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"no end after {SECONDS} s"
    if done.returncode == 0:
        return None
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].split(" - ")[0] if failed else f"exit status {done.returncode}"


def main(count=30, seed=0):
    everything = [(name, i) for name in FILES for i, _ in enumerate(places(ast.parse((ROOT / name).read_text())))]
    chosen = random.Random(seed).sample(everything, count)
    killed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "minivae"
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", "data", "runs", "*.egg-info", ".venv"))
        for name, number in sorted(chosen):
            line_number, line, faulty, text = mutant(name, number)
            (folder / name).write_text(text)
            caught = first_failure(folder)
            shutil.copy(ROOT / name, folder / name)
            killed += caught is not None
            print(f"{name}:{line_number}  {faulty}\n    {caught or 'SURVIVES, where it stood: ' + line}", flush=True)
    print(f"{killed} of {count} caught, drawn with seed {seed} from {len(everything)} faults")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
