"""The scripts of examples/, on copies of the pages that they write."""

import shutil

import numpy as np
import pages
import pytest
import questions
import step_size
from scipy.stats import multivariate_normal


@pytest.fixture
def docs(tmp_path, monkeypatch):
    for page in pages.DOCS.glob("*.md"):
        shutil.copy(page, tmp_path)
    monkeypatch.setattr(pages, "DOCS", tmp_path)
    monkeypatch.setattr(step_size, "DOCS", tmp_path)
    return tmp_path


def test_a_table_is_written_between_its_markers_alone(docs):
    (docs / "page.md").write_text("a\n<!-- t -->\nold\n<!-- /t -->\nb\n")
    pages.write_between("page.md", "t", pages.table(["x", "y"], [["1", "2"]]))
    assert (docs / "page.md").read_text() == "a\n<!-- t -->\n| x | y |\n| --- | --- |\n| 1 | 2 |\n<!-- /t -->\nb\n"
    with pytest.raises(ValueError, match="page.md has no <!-- u -->"):
        pages.write_between("page.md", "u", "")


def test_step_size_shows_that_the_step_of_gradcheck_is_a_good_one(docs, monkeypatch):
    monkeypatch.setattr(step_size, "STEPS", {np.float64: 10.0 ** np.array([-10, -8, -6, -4]),
                                             np.float32: 10.0 ** np.array([-6, -4])})
    monkeypatch.setattr(step_size, "CASES", step_size.CASES[:1])
    step_size.main()
    assert (docs / "step_size.png").stat().st_size > 10_000
    error = step_size.errors(np.float64)
    assert error[2].max() < 0.1 * min(error[0].max(), error[3].max())
    assert step_size.gradcheck.STEP == 1e-6


def test_the_linear_model_s_density_is_exact(rng):
    w, x = rng.standard_normal((2, 5)), rng.standard_normal((7, 5))
    density = multivariate_normal(np.zeros(5), w.T @ w + questions.NOISE**2 * np.eye(5))
    assert questions.linear_ln_p(x, w) == pytest.approx(density.logpdf(x).mean(), rel=1e-12)


def test_log_mean_survives_large_logarithms():
    assert questions.log_mean(np.array([[-1e4], [-1e4]])) == pytest.approx(-1e4)
    assert questions.log_mean(np.log([[1.0], [3.0]])) == pytest.approx(np.log(2))


@pytest.mark.long
def test_questions_writes_its_tables(docs):
    page = docs / "questions.md"
    page.write_text("".join(f"<!-- {t} -->\n<!-- /{t} -->\n" for t in ("settings", "curve", "others", "monte carlo")))
    questions.main()
    text = page.read_text()
    for row in ("| sigma optimal |", "| 600 |", "| ELBO, mean of ln w", "| exact |"):
        assert row in text
