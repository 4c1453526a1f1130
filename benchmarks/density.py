"""The table of densities in docs/results.md, from the density.json that `python run.py evaluate RUN` leaves.

    python benchmarks/density.py RUN [RUN ...]

writes benchmarks/results/density.json and the table between that page's density markers. The baselines of a data set
are those of its first run.
"""

import json
import sys
from pathlib import Path

from readme import RESULTS_PAGE, table, write_between

from minivae.density.report import named_sigma
from minivae.training.runs import Run

RESULTS = Path(__file__).parent / "results" / "density.json"
SETTINGS = ("step", "seed", "importance", "ais_chains", "ais_steps")
BASELINES = ("uniform", "gaussian", "student", "mixture")
HEADER = ["data", "p(x)", "latents", "steps", "images", "KL", "ln p(x)", "ELBO", "IWAE", "bits/dim", "grey levels",
          "AIS*", "bits/dim*", "less best baseline*", "BDMC gap*"]


def summary(data, card):
    """What the table says of one run's card, and enough beside it to make the card again."""
    return {
        "data": data, "sigma": named_sigma(card), "latents": len(card["latents"]["kl"]),
        **{name: card[name] for name in SETTINGS},
        "train_sha256": card["train"]["sha256"], "test_sha256": card["test"]["sha256"],
        **{name: {"rows": card[name]["rows"], "figures": card[name]["figures"]}
           for name in ("bounds", "annealed", "simulated")},
    }


def lines(results):
    """The table's lines: those of a data set's baselines above those of its first run."""
    found = []
    known = set()
    for r in results:
        bounds, few = r["bounds"]["rows"], r["annealed"]["rows"]
        for name in BASELINES:
            if r["data"] not in known and name in bounds:
                row = bounds[name]
                found.append(line(r["data"], row["label"], {"ln p(x)": nats(row), "bits/dim": bits(row)}))
        known.add(r["data"])
        found.append(line(r["data"], f"VAE, sigma {r['sigma']}", {
            "latents": str(r["latents"]), "steps": f"{r['step']:,}",
            "images": f"{bounds['elbo']['images']:,}, {few['ais']['images']}*",
            "KL": f"{r['bounds']['figures']['KL']:.1f}",
            "ELBO": nats(bounds["elbo"]), "IWAE": nats(bounds["iwae"]), "bits/dim": f"≤ {bits(bounds['elbo'])}",
            "grey levels": f"≤ {bits(bounds['elbo_levels'])}",
            "AIS*": nats(few["ais"]), "bits/dim*": f"≤ {bits(few['ais'])}",
            "less best baseline*": figure(r["annealed"], "AIS_less_best_baseline", "+.1f"),
            "BDMC gap*": figure(r["simulated"], "BDMC_gap", "z.2f")}))
    return found


def line(data, density, cells):
    return [data, density] + [cells.get(name, "") for name in HEADER[2:]]


def settings(results):
    """A sentence: K of IWAE-K, chains and temperatures of AIS."""
    kinds = {f"IWAE-{r['importance']}; AIS with {r['ais_chains']} chains of {r['ais_steps']} temperatures"
             for r in results}
    return f"{' / '.join(sorted(kinds))}."


def figure(part, name, digits):
    """A figure of the card and, unless it is of one image, its standard error."""
    error = part["figures"].get(f"{name}_standard_error")
    value = format(part["figures"][name], digits)
    return value if error is None else f"{value} ± {format(error, digits.replace('+', ''))}"


def nats(row):
    error = round(row["standard_error"] or 0, 1)  # none is known of one image; 0 of a constant
    return f"{row['nats_per_image']:.1f}" + (f" ± {error}" if error else "")


def bits(row):
    return f"{row['bits_per_dim']:.3f}"


def main(folders):
    results = []
    for folder in folders:
        run = Run.open(folder)
        card = json.loads((run / "density.json").read_text())
        results.append(summary(Path(run.config.data).name, card))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    write_between("density", f"{table(HEADER, lines(results))}\n\n{settings(results)}", RESULTS_PAGE)


if __name__ == "__main__":
    main(sys.argv[1:])
