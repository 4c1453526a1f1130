"""The README's table of densities, from the density.json that `python run.py evaluate RUN` leaves in each run.

    python benchmarks/density.py RUN [RUN ...]

writes benchmarks/results/density.json and the table between the README's density markers. The baselines of a data set
are those of its first run.
"""

import json
import sys
from pathlib import Path

from readme import table, write_between

from minivae.density.card import named_sigma
from minivae.training.runs import Run

RESULTS = Path(__file__).parent / "results" / "density.json"
HEADER = ["data", "p(x)", "updates", "images", "exact", "ELBO", "IWAE", "bits/dim", "ELBO*", "AIS*", "BDMC gap*",
          "bits/dim*"]


def summary(folder):
    """What the table says of one run, and enough beside it to make the card again."""
    run = Run.open(folder)
    card = json.loads((run / "density.json").read_text())
    (elbo, importance), few = (find(card["bounds"], name) for name in ("ELBO,", "IWAE")), card["annealed"]
    return {"data": Path(run.config.data).name, "sigma": named_sigma(card), "updates": card["update"],
            **{name: card[name] for name in ("seed", "importance", "ais_chains", "ais_steps")},
            "train_sha256": card["train"]["sha256"], "test_sha256": card["test"]["sha256"],
            "uniform density": card["bounds"]["uniform density"],
            "full Gaussian": card["bounds"]["full Gaussian of the training pixels"],
            "elbo": elbo, "iwae": importance, "ais": few["log-likelihood by AIS"], "same_elbo": find(few, "ELBO,"),
            "gap": card["simulated"]["gap"], "refitted_sigma": card.get("refitted_sigma")}


def find(rows, start):
    return next(row for name, row in rows.items() if name.startswith(start) and "dequantized" not in name)


def rows(results):
    lines, known = [], set()
    for r in results:
        if r["data"] not in known:
            known.add(r["data"])
            lines += [line(r, name, "", {"exact": nats(r[name]), "bits/dim": bits(r[name])})
                      for name in ("uniform density", "full Gaussian")]
        lines.append(line(r, f"VAE, sigma {r['sigma']}", r["updates"], {
            "images": f"{r['elbo']['images']}, {r['ais']['images']}*", "ELBO": nats(r["elbo"]), "IWAE": nats(r["iwae"]),
            "bits/dim": f"≤ {bits(r['elbo'])}", "ELBO*": nats(r["same_elbo"]), "AIS*": nats(r["ais"]),
            "BDMC gap*": f"{r['gap']:z.2f}", "bits/dim*": f"≤ {bits(r['ais'])}"}))
        if refitted := r["refitted_sigma"]:
            lines.append(line(r, f"the same with sigma {refitted['sigma']:.3f}", r["updates"], {
                "images": str(r["elbo"]["images"]), "ELBO": f"{refitted['elbo']:.1f}",
                "bits/dim": f"≤ {bits(refitted)}"}))
    return lines


def line(result, density, updates, cells):
    return [result["data"], density, str(updates)] + [cells.get(name, "") for name in HEADER[3:]]


def settings(results):
    """A sentence: K of IWAE-K, chains and temperatures of AIS."""
    kinds = {f"IWAE-{r['importance']}; AIS with {r['ais_chains']} chains of {r['ais_steps']} temperatures"
             for r in results}
    return f"{' / '.join(sorted(kinds))}."


def nats(row):
    error = round(row["standard_error"] or 0, 1)  # none of one image; 0 of a constant
    return f"{row['nats_per_image']:.1f}" + (f" ± {error}" if error else "")


def bits(row):
    return f"{row['bits_per_dim']:.3f}"


def main(folders):
    results = [summary(folder) for folder in folders]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    write_between("density", f"{table(HEADER, rows(results))}\n\n{settings(results)}")


if __name__ == "__main__":
    main(sys.argv[1:])
