"""How far finite differences can be trusted: the error of gradcheck's comparison against the step h.

    python examples/step_size.py

draws docs/step_size.png and writes the table of docs/gradients.md, in some seconds. For float64 and float32, and for
each h, it checks every gradient of the small models that gradcheck uses (both kinds of KL, training and test mode).
"""

import numpy as np
from matplotlib.figure import Figure
from pages import DOCS, table, write_between

from minivae import checks, gradcheck
from minivae.ops import plain

STEPS = {np.float64: 10 ** np.arange(-11, -0.9, 0.5), np.float32: 10 ** np.arange(-6, -0.9, 0.5)}
CASES = [case for case in checks.SMALL_CASES if case.sigma == 1 and not case.classes]


def errors(dtype):
    """The errors (steps, gradients) of all gradients of the cases."""
    rows = [row for case in CASES for row in checks.model_rows(plain, case, dtype=dtype)]
    usual = gradcheck.STEP
    found = []
    for gradcheck.STEP in STEPS[dtype]:
        rng = np.random.default_rng(1)  # the same directions for each step
        found.append([gradcheck.directional(*row[1:], rng)[2] for row in rows])
    gradcheck.STEP = usual
    return np.array(found)


def draw(path, found):
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axis = figure.subplots()
    for (dtype, error), colour in zip(found.items(), ("tab:blue", "tab:orange"), strict=True):
        name = np.dtype(dtype).name
        axis.loglog(STEPS[dtype], error.max(1), "o-", ms=3, color=colour, label=f"{name}, largest")
        axis.loglog(STEPS[dtype], np.median(error, 1), "--", color=colour, label=f"{name}, median")
    axis.axhline(gradcheck.TOLERANCE, color="grey", lw=0.8)
    axis.text(STEPS[np.float64][-1], 1.3 * gradcheck.TOLERANCE, "tolerance", ha="right", color="grey")
    axis.axvline(gradcheck.STEP, color="grey", lw=0.8)
    axis.text(0.8 * gradcheck.STEP, 2e-10, "gradcheck's h", ha="right", color="grey")
    axis.set(xlabel="h", ylabel="relative error of the comparison")
    axis.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def main():
    found = {dtype: errors(dtype) for dtype in STEPS}
    draw(DOCS / "step_size.png", found)
    rows = []
    for i, h in enumerate(STEPS[np.float64]):
        if i % 2 == 0:
            row = [f"{h:.0e}"]
            for dtype, error in found.items():
                j = i - len(STEPS[np.float64]) + len(STEPS[dtype])  # both end at the same h
                fail = (error[j] > gradcheck.TOLERANCE).sum()
                row += [f"{np.median(error[j]):.0e}", f"{error[j].max():.0e}", str(fail)] if j >= 0 else [""] * 3
            rows.append(row)
    header = ["h", "float64: median", "largest", "above 5e-6", "float32: median", "largest", "above 5e-6"]
    write_between("gradients.md", "step size", table(header, rows))


if __name__ == "__main__":
    main()
