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
                  if inspect.isfunction(f) and f.__module__.startswith(plain.__name__) and not name.startswith("_")}
    assert {"dense", "adam"} < operations
    assert operations - named(DOCS / page for page in DERIVATIONS) == set()


def test_every_operation_that_a_page_names_exists():
    assert [name for name in named(PAGES) if not hasattr(plain, name)] == []


def test_the_definition_names_the_pages_that_derive_it():
    text = Path(plain.__file__).read_text()
    assert [page for page in DERIVATIONS if f"docs/{page}" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_to_headings_lead_to_one(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", page.read_text()):
        text = (page.parent / target).read_text() if target else page.read_text()
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, anchor


def test_the_densities_that_questions_quotes_are_those_measured():
    text = " ".join((DOCS / "questions.md").read_text().split())
    measured = json.loads((DOCS.parent / "benchmarks/results/density.json").read_text())
    one = next(r for r in measured if r["sigma"] == "1")
    rows = one["annealed"]["rows"]
    elbo, ais = (rows[name]["nats_per_image"] for name in ("elbo", "ais"))
    gap = one["simulated"]["figures"]["BDMC_gap"]
    for figure in (f"{rows['ais']['images']} test images", f"is {elbo:.1f} nats", f"{gap:.2f} apart", f"{ais:.1f}:",
                   f"{ais - elbo:.1f} nats short"):
        assert figure in text
