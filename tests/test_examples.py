"""The worked example of CONTRIBUTING.md works, and so does the tour."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from minivae.layers import Layer
from minivae.ops import plain
from minivae.parameters import Parameters

PAGE = Path(__file__).parent.parent / "CONTRIBUTING.md"


def test_the_worked_example(rng, check):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names = {"np": np, "Layer": Layer, "Parameters": Parameters}
    for block in blocks:
        exec(block, names)  # the page's own code
    ops = SimpleNamespace(**vars(plain), silu=names["silu"], silu_dx=names["silu_dx"])
    names["test_silu"](ops, rng, check)


def test_the_tour(capsys):
    runpy.run_path(str(PAGE.parent / "examples" / "tour.py"))
    *_, by_hand, numeric = capsys.readouterr().out.splitlines()
    found = [float(word.strip(",")) for word in f"{by_hand} {numeric}".split() if "." in word]
    assert len(found) == 3
    np.testing.assert_allclose(found, found[0], rtol=1e-8)
