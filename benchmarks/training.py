"""The table of training results in docs/results.md, from the metrics.csv of finished runs.

    python benchmarks/training.py RUN [RUN ...]

puts the losses on test images after 1,000, 2,000 and the last step into benchmarks/results/training.json, in place of
those of a run with the same data, seed and --lr-end, and writes the table between that page's training markers.
"""

import json
import sys
from pathlib import Path

from readme import RESULTS_PAGE, table, write_between

from minivae.training.runs import Run

SHOWN = 1000, 2000  # steps
RESULTS = Path(__file__).parent / "results" / "training.json"


def of_run(folder):
    """Rows of a run: what it is, and its losses on test images."""
    run = Run.open(folder)
    tests = [row for row in run.metrics() if "test_loss" in row]
    tests = [row for row in tests if row["step"] in SHOWN or row is tests[-1]]
    about = {"data": Path(run.config.data).name, "seed": run.config.seed, "lr_end": run.config.lr_end}
    return [about | {k: row[k] for k in ("step", "test_loss", "test_rec", "test_kl")} for row in tests]


def identity(row):
    return row["data"], row["seed"], row["lr_end"]


def main(folders):
    new = [row for folder in folders for row in of_run(folder)]
    old = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    measured_again = {identity(row) for row in new}
    results = new + [row for row in old if identity(row) not in measured_again]
    results.sort(key=lambda row: (*identity(row), row["step"]))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    rows = [[r["data"], str(r["seed"]), f"{r['lr_end']:g}", f"{r['step']:,.0f}"]
            + [f"{r[k]:.1f}" for k in ("test_loss", "test_rec", "test_kl")] for r in results]
    header = ["data", "seed", "--lr-end", "steps", "test loss", "rec", "KL"]
    write_between("training", table(header, rows), RESULTS_PAGE)


if __name__ == "__main__":
    main(sys.argv[1:])
