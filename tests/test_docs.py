"""The pages of docs/: their examples run, and they and the code name each other."""

import doctest
import inspect
import json
import re
from pathlib import Path

import pytest

from minivae.ops import plain

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))
DERIVATIONS = "gradients.md", "elbo.md", "batch_norm.md"


def named(pages):
    """Every NAME of a plain.NAME in these pages."""
    text = "".join(page.read_text() for page in pages)
    return set(re.findall(r"\bplain\.(\w+)", text)) - {"py"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_print_what_the_page_shows(page):
    assert not doctest.testfile(str(page), module_relative=False).failed


def test_every_operation_is_derived():
    operations = {name for name, f in vars(plain).items()
                  if inspect.isfunction(f) and f.__module__ == plain.__name__ and not name.startswith("_")}
    assert {"dense", "adam"} < operations
    assert operations - named(DOCS / page for page in DERIVATIONS) == set()


def test_every_operation_that_a_page_names_exists():
    assert [name for name in named(PAGES) if not hasattr(plain, name)] == []


def test_the_definition_names_the_pages_that_derive_it():
    text = Path(plain.__file__).read_text()
    assert [page for page in DERIVATIONS if f"docs/{page}" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, anchor


def test_the_densities_that_questions_quotes_are_those_measured():
    text = (DOCS / "questions.md").read_text()
    measured = json.loads((DOCS.parent / "benchmarks/results/density.json").read_text())
    results = {r["sigma"].split()[0]: r for r in measured}
    for name, short in (("1", 4), ("optimal", 869)):
        gap = results[name]["ais"]["nats_per_image"] - results[name]["same_elbo"]["nats_per_image"]
        assert round(gap) == short and f"{short} nats short" in " ".join(text.split())
    one = results["1"]
    for value in (one["same_elbo"]["nats_per_image"], one["ais"]["nats_per_image"]):
        assert f"{value:.1f}" in text
    assert f"{one['gap']:.2f}" in text
