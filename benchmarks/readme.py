"""Tables of the README and of docs/, written between markers: <!-- NAME --> ... <!-- /NAME -->."""

from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
RESULTS_PAGE = README.parent / "docs" / "results.md"


def write_between(name, text, path=README):
    """Replace what stands between the markers of `name` by `text`. ValueError if the file lacks the markers."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    content = path.read_text()
    if content.count(start) != 1 or content.count(end) != 1:
        raise ValueError(f"{path} must hold {start} and {end} once each")
    before, rest = content.split(start)
    path.write_text(f"{before}{start}\n{text.strip()}\n{end}{rest.split(end)[1]}")


def table(header, rows):
    """A Markdown table of strings."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
