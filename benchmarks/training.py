"""The table of training results in docs/results.md, from the metrics.csv of finished runs.

    python benchmarks/training.py RUN [RUN ...]

writes the losses on test images after 1,000, 2,000 and the last update to benchmarks/results/training.json and to the
table between that page's training markers.
"""

import json
import sys
from pathlib import Path

from readme import RESULTS_PAGE, table, write_between

from minivae.training.runs import Run

SHOWN = 1000, 2000  # steps
RESULTS = Path(__file__).parent / "results" / "training.json"


def main(folders):
    results = []
    for folder in folders:
        run = Run.open(folder)
        tests = [row for row in run.metrics() if "test_loss" in row]
        tests = [row for row in tests if row["step"] in SHOWN or row is tests[-1]]
        about = {"data": Path(run.config.data).name, "seed": run.config.seed}
        results += [about | {k: row[k] for k in ("step", "test_loss", "test_rec", "test_kl")} for row in tests]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    rows = [[r["data"], str(r["seed"]), f"{r['step']:,.0f}"]
            + [f"{r[k]:.1f}" for k in ("test_loss", "test_rec", "test_kl")] for r in results]
    write_between("training", table(["data", "seed", "steps", "test loss", "rec", "KL"], rows), RESULTS_PAGE)


if __name__ == "__main__":
    main(sys.argv[1:])
