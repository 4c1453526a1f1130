"""The parts of benchmarks/ that need neither a GPU nor PyTorch."""

import json
import sys
from types import SimpleNamespace

import gpu_step
import gpu_trace
import lattice
import numpy as np
import pictures
import pytest
import ranks
import readme
import roofline
import scaling
from PIL import Image

from minivae.ops import numpy_ops
from minivae.vae import VAE, Widths


@pytest.fixture(scope="module")
def products():
    return {p.name: p for p in roofline.products(VAE((32, 32, 3), 10, numpy_ops), 64)}


def test_products_of_the_reference(products):
    """Multiplications by hand: 2 N (h w) (k k I) O."""
    megaflops = {name: round(p.flops / 1e6) for name, p in products.items()}
    assert megaflops == {"enc/conv1": 28, "enc/conv2": 151, "enc/conv3": 151, "enc/dense": 268, "enc/mean": 1,
                         "enc/var": 1, "gen/dense": 10, "gen/tconv1": 3355, "gen/tconv2": 1678, "gen/tconv3": 157}
    assert products["gen/tconv1"].big == (64, 8, 8, 128) and products["gen/tconv1"].small == (64, 4, 4, 512)
    assert products["enc/conv1"].bytes == 4 * (64 * 32 * 32 * 3 + 64 * 16 * 16 * 32 + 27 * 32)
    assert products["enc/conv1"].passes == ("forward", "dw") and len(products["enc/conv2"].passes) == 3


def test_a_floor_is_the_slower_of_arithmetic_and_memory(products):
    tconv1 = products["gen/tconv1"]
    assert tconv1.floor(495, 1000) == pytest.approx(tconv1.flops / 495e12)
    assert tconv1.floor(1e6, 4) == pytest.approx(tconv1.bytes / 4e12)


@pytest.mark.parametrize("name, bandwidth", [("NVIDIA H200", 4.8), ("NVIDIA L40S", 0.864), ("NVIDIA L4", 0.3),
                                             ("NVIDIA H100 80GB HBM3", 3.35), ("NVIDIA A100-SXM4-80GB", 2.039)])
def test_cards_are_told_apart(name, bandwidth):
    assert roofline.card(name)[2] == bandwidth


def test_an_unknown_card_has_no_floor():
    assert roofline.card("NVIDIA GeForce GTX 480") is None


def test_several_gpus_on_paper(monkeypatch):
    """A step's all-reduces: 9 batch norms' mean, variance and two sums; rec and kl; the gradients."""
    few, gradients = scaling.exchanged()
    assert few == 9 * 3 + 2
    assert gradients == VAE((32, 32, 3), 10, numpy_ops).params.grads.nbytes
    monkeypatch.setattr(scaling, "LINKS", {"link": (1e3, 10)})
    monkeypatch.setattr(scaling, "one", lambda batch: 1e3 * batch)
    expected = 16e3 + 30 * 10 + 29 * scaling.LAUNCHES * scaling.LAUNCH + 1.5 * gradients / 1e3
    assert scaling.step(64, 4, "link") == pytest.approx(expected)
    assert scaling.worth(4, "link") == "128"


def test_the_page_on_scaling_has_what_the_script_finds():
    assert scaling.report() in ranks.PAGE.read_text()


def test_ranks_table(monkeypatch):
    results = {"milliseconds": {c: {str(n): [100.0 + i, 7.0] for n in ranks.BATCHES}
                                for i, c in enumerate(ranks.COLUMNS)},
               "machine": dict.fromkeys(("processor", "family", "model", "vectors", "cores", "blas", "numpy"), "x"),
               "mpi": "MPICH", "torch": "2"}
    assert "| 256 | 100 | 101 | 102 | 103 | 7 | 0.98 |" in ranks.report(results)


def test_turns_alternate(monkeypatch):
    monkeypatch.setattr(gpu_step, "ROUNDS", 3)
    order = []
    timers = {name: lambda calls, name=name: order.append((name, calls)) or 1.0 for name in "ab"}
    rounds = []
    found = gpu_step.take_turns(timers, lambda: rounds.append(len(order)), calls=7)
    assert found == {"a": [1.0] * 3, "b": [1.0] * 3} and rounds == [4, 6, 8]
    assert order == [("a", gpu_step.WARM_UP), ("b", gpu_step.WARM_UP)] + 3 * [("a", 7), ("b", 7)]


def test_the_readme_takes_the_tables(tmp_path):
    (tmp_path / "README.md").write_text("above\n<!-- gpu -->\nNot yet measured.\n<!-- /gpu -->\nbelow\n")
    step = {"batch": 64, "ms": {"minivae": 0.25, "compile": 0.5}, "peak_mb": {"minivae": 100, "compile": 200.4},
            "busy_us": {"minivae": 225.4}, "clocks_mhz": [1755, None, 1980, 1900], "launches": 70,
            "failed": {"max-autotune": "RuntimeError: none"}}
    row = {"name": "gen/tconv1", "pass": "dw", "batch": 64, "minivae": 10.0, "cudnn": 12.5, "floor": None}
    text = gpu_step.report({"card": "CARD", "date": "DAY", "cupy": "14", "torch": "2", "cudnn": 9, "steps": [step],
                            "products": [row], "run": {"updates": 50_000, "batch": 64, "seconds": 12.34}})
    readme.write_between("gpu", text, tmp_path / "README.md")
    written = (tmp_path / "README.md").read_text()
    for line in ("| 64 | 0.250 | 0.500 | - | 70 |", "| 64 | 100 | 200 | - |",
                 "| 64 | 225 | - | - |", "1900 MHz, from 1755 to 1980",
                 "| gen/tconv1 | dw | 10.0 | 12.5 | 1.25 | - |", "50,000 updates of batch 64", "12.3 s"):
        assert line in written
    assert "Not yet measured" not in written and written.startswith("above") and written.endswith("below\n")


def test_the_readme_has_a_place_for_them():
    text = readme.README.read_text()
    assert text.count("<!-- gpu -->") == text.count("<!-- /gpu -->") == 1


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_step.main([]) == 2
    assert "error: --gpu needs" in capsys.readouterr().err


def results(**parts):
    return {"card": "CARD", "date": "DAY", "cupy": "14", "torch": "2", "cudnn": 9, "run": None, "products": [],
            "steps": []} | parts


def test_parts_are_measured_one_by_one(monkeypatch, tmp_path):
    """On the same day, with the same versions, what was there stays; a batch measured again is replaced."""
    old = results(steps=[{"batch": 256, "failed": {}}, {"batch": 64, "failed": {}}])
    head = {name: old[name] for name in ("card", "date", "cupy", "torch", "cudnn")}
    (tmp_path / "a.json").write_text(json.dumps(old))
    assert gpu_step.earlier(tmp_path / "a.json", head) == old
    assert gpu_step.earlier(tmp_path / "a.json", head | {"date": "NEXT"}) == results(date="NEXT")
    monkeypatch.setattr(gpu_step, "steps", lambda batch, columns, timers: {"batch": batch, "new": True})
    arguments = SimpleNamespace(parts=["steps"], batch=[64, 1024], columns=[])
    for _, measure in gpu_step.parts(old, arguments, None):
        measure()
    assert [(step["batch"], "new" in step) for step in old["steps"]] == [(64, True), (256, False), (1024, True)]


def test_a_profile_adds_to_the_times(monkeypatch):
    def steps(batch, columns, timers):
        timers["minivae"] = len
        return {"batch": batch, "busy_us": {}}

    monkeypatch.setattr(gpu_step, "steps", steps)
    monkeypatch.setattr(gpu_trace, "trace", lambda call: 2 * [[gpu_trace.Kernel("add", (1, 1, 1), 10.0, batch)]])
    found = results()
    arguments = SimpleNamespace(parts=["steps"], batch=[64, 256], columns=["minivae"])
    for name, measure in gpu_step.parts(found, arguments, None):
        batch = int(name.split()[-1])
        measure()
    assert [step["busy_us"]["minivae"] for step in found["steps"]] == [64, 256]
    assert found["steps"][1]["timeline"] == [("add", (1, 1, 1), 0, 256)]


def test_what_fails_does_not_lose_the_rest(monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(compiler=SimpleNamespace(reset=lambda: None)))
    monkeypatch.setattr(gpu_step, "torch_step", fail)
    monkeypatch.setattr(gpu_step, "mine", lambda *_: lambda calls: 0.25)
    monkeypatch.setattr(gpu_step, "clock", lambda: 1755)
    timers = {}
    found = gpu_step.steps(64, ["minivae", "compile"], timers)
    assert found["ms"] == {"minivae": 0.25} and found["failed"] == {"compile": "RuntimeError: no compiler"}
    assert list(timers) == ["minivae"] and found["clocks_mhz"] == gpu_step.ROUNDS * [1755]
    assert "error: compile at batch 64: RuntimeError: no compiler" in capsys.readouterr().err


def test_a_part_that_is_missing_is_left_out():
    text = gpu_step.report(results(run={"updates": 50_000, "batch": 64, "seconds": 12.34}))
    assert "12.3 s" in text and "|" not in text


def test_the_checkerboard_measure():
    """Of a lattice of +-0.1 in [0, 1] every difference is 0.4; flat images, slopes and straight edges have none."""
    row, column = np.mgrid[:8, :8]
    images = np.zeros((2, 16, 16, 3))
    images[:, 8:, 8:] += 0.2 * (-1.0) ** (row + column)[..., None]
    images[:, :8, :8] += (0.05 * row - 0.02 * column)[..., None]
    images[:, :8, 12:] = 0.7
    np.testing.assert_allclose(lattice.checkerboard(images), [0, 0, 0, 1600], atol=1e-9)


def test_where_the_variance_lies_and_what_noise_does():
    """Both leave the model as it was."""
    vae = VAE((16, 16, 3), 4, numpy_ops, widths=Widths((4, 5, 6), 7, (8, 6, 5)))
    images = np.random.RandomState(0).randint(0, 256, (40, 16, 16, 3)).astype(np.uint8)
    before = vae.params.values.copy(), vae.params.moving_statistics.copy()
    *shares, tenth = lattice.concentration(vae, images)
    assert sum(shares) == pytest.approx(1, abs=1e-5) and shares[0] < shares[3] and 0.1 < tenth < 1
    z = np.random.RandomState(0).randn(10, 4)
    assert (np.array(lattice.shaken(vae, z)) != lattice.checkerboard(lattice.figures.decode(vae, z))).all()
    for array, old in zip((vae.params.values, vae.params.moving_statistics), before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_pictures_side_by_side(tmp_path):
    left, right = -np.ones((6, 8, 8, 3)), np.zeros((6, 8, 8, 3))
    pictures.draw_beside(tmp_path / "beside.png", left, right, columns=3)
    pixels = np.asarray(Image.open(tmp_path / "beside.png"))
    assert pixels.shape == (2 * 20, 7 * 20, 3)
    np.testing.assert_array_equal(pixels[10::20, 10::20, 0], 2 * [[0, 0, 0, 255, 128, 128, 128]])
