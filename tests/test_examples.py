"""The worked example of CONTRIBUTING.md works, and so does the tour."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import spectrum
from emulator import emulator
from PIL import Image

import minivae
from minivae.layers import Layer
from minivae.ops import plain
from minivae.parameters import Parameters
from minivae.trained import TrainedVAE
from minivae.vae import VAE, Widths

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


@pytest.mark.parametrize("shape", [(8, 16, 3), (8, 8, 1)])
def test_the_picture_of_a_spectrum(shape, tmp_path, monkeypatch):
    vae = VAE(shape, 6, plain, sigma="spectrum", widths=Widths((2, 3, 4), 6, (5, 4, 3)))
    monkeypatch.setattr(spectrum, "DOCS", tmp_path)
    monkeypatch.setattr(minivae, "load", lambda run: TrainedVAE(vae))
    spectrum.main("a run")
    assert Image.open(tmp_path / "spectrum.png").width > 800


@pytest.mark.skipif(bool(emulator.WHY_NOT), reason=str(emulator.WHY_NOT))
def test_the_naive_product(rng):
    """Over the end of a block's threads, too."""
    code = (PAGE.parent / "examples" / "naive_product.cu").read_text()
    kernel = emulator.RawModule(code, name_expressions=["naive_product"]).get_function("naive_product")
    x, w = rng.standard_normal((3, 20)).astype(np.float32), rng.standard_normal((20, 70)).astype(np.float32)
    y = emulator.guarded(np.full((3, 70), np.nan, np.float32))
    kernel((2, 3), (64,), (x, w, np.int32(3), np.int32(20), np.int32(70), y))
    np.testing.assert_allclose(y, x @ w, rtol=1e-5, atol=1e-6)
