"""What an evaluation shows: its stages while it runs; then the density card, printed and drawn."""

import functools
import math
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

from minivae.files import replacing
from minivae.images.summary import listed

LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # the dashed line ends at a label


class Stages:
    """Says which stage of an evaluation begins, and after how long; a bar each on a terminal."""

    def __init__(self, total):
        self.total = total
        self.number = 0
        self.start = time.perf_counter()

    def __call__(self, name):
        """Begin the next stage; returns the `progress` that its loops go through."""
        self.number += 1
        seconds = time.perf_counter() - self.start
        print(f"{seconds:7.1f} s  stage {self.number} of {self.total}: {name}", flush=True)
        return functools.partial(tqdm, desc=name, disable=None, leave=False)


def named_sigma(card):
    """"0.3", "learned (0.0832)", "spectrum"."""
    value = card["sigma_value"]
    if value is None:
        return card["sigma"]
    return f"{card['sigma']} ({value:.4f})" if isinstance(card["sigma"], str) else f"{value:g}"


def print_card(card):
    images = card["bounds"]["rows"]["elbo"]["images"]
    few = card["annealed"]["rows"]["elbo"]["images"]
    constant = card["dimensions"] / 2 * math.log(2 * math.pi)
    print(f"\nDensity card of {card['run']}: step {card['step']}, sigma {named_sigma(card)}, "
          f"seed {card['seed']}")
    for split in ("train", "test"):
        print(f"{split:<5} {card[split]['images']} images, sha256 {card[split]['sha256']}")
    if left_out := card["left_out"]:
        print(f"{len(left_out)} test images are left out, as copies of others or of training "
              f"images: {listed(left_out)}")
    print("\nln p(x) of images x in [-1, 1] with dequantized pixels, in nats per image (more is "
          "better),\n+- standard error over images, and in bits per dimension of their pixels "
          "(less is better).\nBatch norm has re-estimated statistics. Standard errors of few images "
          "are rough: of 16 skewed values,\n1.96 of them to each side hold the mean in 84 to 92 % of "
          "cases, not in 95 %.")
    print_section(card["bounds"], f"{images} test images")
    print_section(card["annealed"], f"the first {few} of them")
    if "labels" in card:
        print_section(card["labels"], f"{images} test images, with each label tried")
    print_section(card["simulated"], f"{few} images simulated from the model: AIS from both ends")
    print_section(card["latents"], "latents")
    print("  KL(q(z|x) || p(z)) of each:", *(f"{kl:.2f}" for kl in card["latents"]["kl"]))
    protocol = card["reference_protocol"]
    print_section(protocol, f"the reference's protocol: {protocol['images']} test images, one z "
                            f"each, without (D/2) ln 2 pi = {constant:.2f}")
    print("", *card["notes"], sep="\n")


def print_section(section, title):
    print(f"\n{title}")
    for row in section["rows"].values():
        error = "" if row["standard_error"] is None else f"+- {row['standard_error']:.2f}"  # one image has none
        print(f"  {row['label']:<40}{row['nats_per_image']:12.2f} {error:<10}"
              f"{row['bits_per_dim']:7.3f} bits/dim  {row['kind']}")
    figures = section["figures"]
    for name, value in figures.items():
        if not name.endswith("_standard_error"):
            error = figures.get(f"{name}_standard_error")
            print(f"  {name.replace('_', ' '):<40}{value:z12.2f}"
                  + (f" +- {error:.2f}" if error is not None else ""))


def draw(path, card):
    """Bits per dimension of every row; what the ELBO lacks of ln p(x) by image; KL by latent."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    bars, gaps, latents = figure.subplots(1, 3, width_ratios=(1.8, 1, 1))
    name = Path(card["run"]).name
    figure.suptitle(f"Density card of {name}: step {card['step']}, sigma {named_sigma(card)}",
                    fontsize=11)
    draw_bits(bars, card)
    ais = np.array(card["annealed"]["ais_each"])
    gaps.plot(ais, ais - card["annealed"]["elbo_each"], "o", ms=4)
    gaps.axhline(0, color="gray", lw=1)
    gaps.xaxis.set_major_locator(MaxNLocator(4))
    gaps.set_title(f"what the ELBO lacks, {len(ais)} test images", fontsize=10)
    gaps.set(xlabel="log-likelihood by AIS, nats", ylabel="log-likelihood by AIS - ELBO, nats")
    kl = card["latents"]["kl"]
    active = card["latents"].get("active", [True] * len(kl))
    latents.bar(range(len(kl)), kl, color=["C0" if on else "C3" for on in active])
    latents.xaxis.set_major_locator(MaxNLocator(integer=True))
    latents.set_title("KL(q(z|x) || p(z)) of each latent", fontsize=10)
    latents.set(xlabel="latent" if all(active) else "latent (red: inactive)",
                ylabel="nats, mean over images")
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=130)


def draw_bits(axis, card):
    """One bar a row: those of all test images, a gap, those of the few that AIS saw."""
    labels = {}  # by place
    for name in ("bounds", "annealed"):
        top = len(labels) + (1 if labels else 0)
        for place, row in enumerate(card[name]["rows"].values(), top):
            labels[place] = row["label"]
            color = "C7" if row["kind"] == "exact" else "C0"
            bar = axis.barh(place, row["bits_per_dim"], color=color)
            axis.bar_label(bar, fmt="%.3f", padding=3, fontsize=8, bbox=LABEL_BOX)
        axis.text(0, top - 0.55, f" {row['images']} test images", fontsize=8, va="bottom")
    axis.axvline(8, color="gray", lw=1, ls="--", zorder=0)
    axis.set_yticks(list(labels), labels.values(), fontsize=8)
    axis.set_ylim(max(labels) + 0.7, -1.5)
    axis.margins(x=0.15)
    axis.set_title("bits per dimension (less is better)", fontsize=10)
    axis.set_xlabel("gray: exact; blue: a bound, the truth is at most that; dashed: the uniform's",
                    fontsize=8)
