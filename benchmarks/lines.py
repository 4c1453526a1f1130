"""How much there is to read: lines of the lesson, and code lines of the package, docstrings and comments apart.

    python benchmarks/lines.py          prints both, and writes the lesson's table between README's lesson markers
"""

import ast
import io
import tokenize
from pathlib import Path

from readme import table, write_between

ROOT = Path(__file__).resolve().parent.parent
LESSON = {
    "minivae/ops/plain.py": "every operation as one would write it on paper, each backward below its forward",
    "minivae/layers.py": "Dense, Conv2D, Conv2DTranspose and BatchNorm: the equations above, the same in code below",
    "minivae/gaussian.py": "q(z\\|x) and p(x\\|z): the three paths through the sampled KL, and what cancels",
    "minivae/vae.py": "the whole model and its gradient, one screen each: `backward` is `forward` read upwards",
    "minivae/parameters.py": "one flat buffer of parameters, one of gradients",
    "minivae/adam.py": "one pass over both",
    "minivae/gradcheck.py": "finite differences along random directions: why eps is frozen and dy is random",
}
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(text):
    """The number of lines of Python that hold more than a comment or a docstring."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def main():
    counts = {name: len((ROOT / name).read_text().splitlines()) for name in LESSON}
    rows = [[f"[{name}]({name})", str(counts[name]), what] for name, what in LESSON.items()]
    write_between("lesson", f"{table(['file', 'lines', 'what it is'], rows)}\n\n{sum(counts.values())} lines in all.")
    package = [ROOT / "run.py", *sorted((ROOT / "minivae").rglob("*.py"))]
    print(f"the lesson: {sum(counts.values())} lines with docstrings and comments")
    print(f"minivae/ and run.py: {sum(code_lines(path.read_text()) for path in package):,} lines of code")


if __name__ == "__main__":
    main()
