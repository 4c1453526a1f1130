"""What gpu_step.py measured, as the README's text."""

import statistics

from readme import table

COLUMNS = {"minivae": "minivae", "in turn": "minivae, no launch begins early",
           "channels_last": "PyTorch eager, channels_last", "compile": "torch.compile",
           "max-autotune": "torch.compile, max-autotune, CUDA graphs",
           "graph": "torch.compile, the whole step with Adam in one CUDA graph"}


def report(results):
    """The README's text: results as Markdown, as far as they are there."""
    text = [f"{results['card']}, {results['date']}, CuPy {results['cupy']}, PyTorch {results['torch']}, cuDNN "
            f"{results['cudnn']}."]
    if results["steps"]:
        columns = [c for c in COLUMNS if any(c in step["ms"] or c in step["failed"] for step in results["steps"])]
        head = ["batch", *(COLUMNS[c] for c in columns)]
        text += ["Milliseconds for an update, tf32:", table([*head, "launches"], [
            [str(step["batch"]), *cells(step["ms"], columns, ".3f"), str(step.get("launches", "-"))]
            for step in results["steps"]])]
        text += ["Microseconds of an update in which a kernel runs, by a profile:", table(head, [
            [str(step["batch"]), *cells(step["busy_us"], columns, ".0f")] for step in results["steps"]])]
        clocks = [clock for step in results["steps"] for clock in step["clocks_mhz"] if clock]
        if clocks:
            text.append(f"The multiprocessors' clock after each round: {statistics.median(clocks):.0f} MHz, from "
                        f"{min(clocks)} to {max(clocks)}.")
        text += ["Peak memory, the data set not counted, MB:", table(head, [
            [str(step["batch"]), *cells(step["peak_mb"], columns, ".0f")] for step in results["steps"]])]
    if results["run"]:
        run = results["run"]
        text.append(f"{run['updates']:,} updates of batch {run['batch']}, batches drawn on the host included: "
                    f"{run['seconds']:.1f} s.")
    if results["products"]:
        text += [f"Each product alone at batch {results['products'][0]['batch']}, microseconds; ratio: cuDNN / minivae;"
                 " floor: the card's data sheet ([benchmarks/roofline.py](benchmarks/roofline.py)):",
                 table(["layer", "pass", "minivae", "cuDNN", "ratio", "floor"], [
                     [r["name"], r["pass"], f"{r['minivae']:.1f}", f"{r['cudnn']:.1f}",
                      f"{r['cudnn'] / r['minivae']:.2f}", f"{r['floor']:.1f}" if r["floor"] else "-"]
                     for r in results["products"]])]
    return "\n\n".join(text)


def cells(values, columns, form):
    return [format(values[c], form) if c in values else "-" for c in columns]
