"""What a model of images given their labels makes of them: docs/labels.png, and a paragraph of docs/density.md.

    python benchmarks/labels.py RUN

RUN was trained by `python run.py --labels`, and evaluated. Its samples are copied, and its card's figures are written
between that page's markers.
"""

import json
import shutil
import sys
from pathlib import Path

from readme import write_between

DOCS = Path(__file__).resolve().parent.parent / "docs"


def paragraph(config, card):
    rows = card["labels"]["rows"]
    figures = card["labels"]["figures"]
    given, summed = (f"{rows[name]['nats_per_image']:.2f}" for name in ("iwae_given", "iwae_summed"))
    return (f"`python run.py --labels --steps {card['step']}` on {Path(config['data']).name}, "
            f"{rows['iwae_given']['images']:,} test images: {given} nats per image for ln p(x|y) and {summed} for "
            f"ln p(x), bounds both. The likeliest label is the right one for {figures['accuracy']:.1%} ± "
            f"{figures['accuracy_standard_error']:.1%} of them; the most frequent label is right for "
            f"{figures['accuracy_of_the_most_frequent_label']:.1%}.")


def main(folder, docs=DOCS):
    config, card = (json.loads((Path(folder) / name).read_text()) for name in ("config.json", "density.json"))
    shutil.copyfile(Path(folder) / "samples.png", docs / "labels.png")
    write_between("labels", paragraph(config, card), docs / "density.md")


if __name__ == "__main__":
    main(sys.argv[1])
