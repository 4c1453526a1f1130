"""Tables in docs/, written between markers: <!-- NAME --> ... <!-- /NAME -->."""

from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"


def write_between(page, name, text):
    """Replace what stands between the markers of `name` in docs/PAGE. ValueError if it lacks the markers."""
    path = DOCS / page
    before, start, rest = path.read_text().partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not end:
        raise ValueError(f"{path} has no <!-- {name} --> ... <!-- /{name} -->")
    path.write_text(f"{before}{start}{text}\n{end}{after}")


def table(header, rows):
    """A Markdown table of strings."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
