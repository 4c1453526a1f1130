"""How far one evaluation on test images is from the next: what one figure of docs/results.md may be off by.

    python benchmarks/fluctuation.py RUN [RUN ...]

makes 100 updates more from each run's checkpoint, in memory only, evaluates after every 10, and writes the median, the
least and the greatest loss into benchmarks/results/fluctuation.json and between that page's fluctuation markers.
"""

import json
import sys
from pathlib import Path

import numpy as np
from readme import RESULTS_PAGE, table, write_between

from minivae.images import data
from minivae.images.given import test_images
from minivae.ops import numpy_ops
from minivae.training import checkpoint
from minivae.training.evaluation import Evaluation
from minivae.training.runs import Run
from minivae.training.trainer import Trainer

DATA = Path(__file__).resolve().parent.parent / "data"
RESULTS = Path(__file__).parent / "results" / "fluctuation.json"
EVALUATIONS, UPDATES = 11, 10


def fluctuation(folder):
    """Test losses in nats per image, of the checkpoint first."""
    run = Run.open(folder)
    dataset = data.load(run.config.data, DATA)
    trainer = Trainer(run.config, dataset.train.images, numpy_ops)
    evaluation = Evaluation(trainer.vae, test_images(dataset).images, run.config.seed)
    checkpoint.load_training(run / "checkpoint.h5", trainer)
    about = {"data": Path(run.config.data).name, "seed": run.config.seed, "from": trainer.step_count}
    losses = []
    for _ in range(EVALUATIONS):
        losses.append(float(sum(evaluation.losses())))
        for _ in range(UPDATES):
            trainer.step()
    return about | {"losses": losses}


def main(folders):
    results = [fluctuation(folder) for folder in folders]
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    last = (EVALUATIONS - 1) * UPDATES
    rows = [[r["data"], str(r["seed"]), f"{r['from']:,} to {r['from'] + last:,}",
             *(f"{of(r['losses']):.1f}" for of in (np.median, min, max))] for r in results]
    header = ["data", "seed", "steps", "median test loss", "least", "greatest"]
    write_between("fluctuation", table(header, rows), RESULTS_PAGE)


if __name__ == "__main__":
    main(sys.argv[1:])
