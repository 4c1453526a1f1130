"""The commands that run.py knows, and the options of each. NumPy is not loaded yet, so that help comes at once."""

import argparse
import re
from pathlib import Path

from minivae import __version__
from minivae.errors import UserError, did_you_mean
from minivae.images import SOURCES
from minivae.training.settings import KLS, batch_size, last_rate, log_every, positive, rate, seed, sigma, size

COMMANDS = {
    "train": "Train a model into a new run directory; without a command, this is done.",
    "resume": "Go on with a run, exactly where it stopped.",
    "sample": "Draw samples.png: images of random latent codes.",
    "reconstruct": "Draw reconstructions.png: test images, or your own, beside their reconstructions.",
    "interpolate": "Draw interpolation.png: between pairs of images, through the latent code.",
    "traverse": "Draw traverse.png: the latents one by one, each moved from -3 to 3.",
    "encode": "Write codes.h5: the mean and the variance of q(z|x) of every image, with its name and label.",
    "score": "Estimate ln p(x) of every image: scores.csv, and scores.png with the least and the most likely ones.",
    "evaluate": "Estimate ln p(x) of test images: density.json, density.png and the same on the screen.",
    "gradcheck": "Compare every gradient with finite differences.",
}
OF_A_RUN = COMMANDS.keys() - {"train", "gradcheck"}
OF_DATA = OF_A_RUN - {"sample"}
OF_IMAGES = {"reconstruct", "interpolate", "traverse", "encode", "score"}
DENSITY = {  # settings of evaluate: numbers of what, on a CPU, on a GPU
    "images": ("test images whose ln p(x) is bounded", 1000, 1000),
    "importance": ("importance samples for each image", 100, 1000),
    "ais_images": ("test images for annealed importance sampling", 16, 64),
    "ais_chains": ("annealing chains for each image", 8, 16),
    "ais_steps": ("temperatures of an annealing chain", 30, 1000),
}


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message}; see: {self.prog} --help")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults of options, and descriptions line by line."""


def path(text):
    """A path, with the ~ that a shell leaves in --option=~/x expanded."""
    try:
        return Path(text or None).expanduser()
    except (TypeError, RuntimeError):  # it is empty; nobody has that home
        raise argparse.ArgumentTypeError(f"{text!r} is not a path") from None


def source(text):
    """A source's name, or an absolute path."""
    return text if text in SOURCES else str(path(text).absolute())


def parse(argv):
    """The arguments of a command, which is train unless the first word is another's name."""
    command, *words = argv if argv and not argv[0].startswith("-") else ["train", *argv]
    if command not in COMMANDS:
        raise UserError(f"{command} is not a command; {did_you_mean(command, COMMANDS)}see: python run.py --help")
    p = parser(command)
    args, unknown = p.parse_known_intermixed_args(words, argparse.Namespace(command=command))
    if unknown:
        word = unknown[0].split("=")[0]
        options = re.findall("--[a-z-]+", p.format_help())
        raise UserError(f"unknown argument {word}; {did_you_mean(word, options)}see: {p.prog} --help")
    return args


def parser(command):
    """The options of a command; train's page of help shows all commands as well."""
    if command == "train":
        p = Parser(prog="python run.py", usage="python run.py [COMMAND] [options]", description=all_commands(),
                   formatter_class=HelpFormatter)
    else:
        p = Parser(prog=f"python run.py {command}", description=COMMANDS[command], formatter_class=HelpFormatter)
    if command in OF_A_RUN:
        p.add_argument("run", metavar="RUN", help="directory of the run")
    if command in OF_IMAGES:
        p.add_argument("path", metavar="PATH", type=path, nargs="?",
                       help="images of your own, of any kind that train takes (default: the run's test images)")
    if command in OF_DATA:
        p.add_argument("--data", type=source, default=argparse.SUPPRESS,
                       help="where the run's images are now (default: where they were)")
    if command in OWN_OPTIONS:
        OWN_OPTIONS[command](p)
    p.add_argument("--gpu", action="store_true", help="run on the GPU with minivae's CUDA kernels")
    p.add_argument("--precision", choices=("tf32", "fp32"), default=argparse.SUPPRESS,
                   help=f"precision of matrix products on the GPU (default: {precision(command)})")
    return p


def all_commands():
    names = ((f"{name} RUN" if name in OF_A_RUN else name, what) for name, what in COMMANDS.items())
    return "\n".join(["A variational autoencoder written from scratch.", "", "commands:",
                      *(f"  {name:<17}{what}" for name, what in names), "",
                      "python run.py COMMAND --help shows the options of a command. These are train's:"])


def precision(command):
    """tf32, where the card has it; fp32 for densities, which are quoted to the second decimal."""
    return "fp32" if command in ("evaluate", "score") else "tf32"


def train_options(p):
    p.add_argument("--version", action="version", version=f"minivae {__version__}", help="show the version and exit")
    p.add_argument("--data", type=source, default="housenumbers",
                   help="images to train on: the path of a folder, an archive or a file of arrays (data/README.md), or "
                        f"{', '.join(SOURCES)}, which are kept in data/ or in the folder that the environment variable "
                        "MINIVAE_DATA names")
    p.add_argument("--from", dest="start", type=path, metavar="RUN", default=argparse.SUPPRESS,
                   help="fine-tune: start from the model of this run, which stays as it is (default: random weights)")
    p.add_argument("--size", type=size, metavar="N|HxW", default=argparse.SUPPRESS,
                   help="crop images to this shape and scale them to it, in pixels (default: take them as they are)")
    p.add_argument("--skip-damaged", action="store_true", help="leave out image files that cannot be read")
    p.add_argument("--steps", type=positive, default=argparse.SUPPRESS,
                   help="number of training steps (default: 2000 on a CPU, 50000 on a GPU)")
    p.add_argument("--batch-size", type=batch_size, default=argparse.SUPPRESS,
                   help="images in a training step (default: 64, or all training images if they are fewer)")
    p.add_argument("--latent", type=positive, default=10, help="dimensions of the latent code")
    p.add_argument("--lr", type=rate, default=1e-3, help="Adam's learning rate in the first three quarters of the run")
    p.add_argument("--lr-end", type=last_rate, default=0.0,
                   help="learning rate that it falls to over the last quarter; the value of --lr keeps it constant")
    p.add_argument("--seed", type=seed, default=0, help="seed of the initial weights, the batches and the noise")
    p.add_argument("--kl", choices=KLS, default="sample",
                   help="KL term of the loss: estimated from one sample, or exact")
    p.add_argument("--sigma", type=sigma, default=1.0, metavar="1|VALUE|optimal|learned|pixel|spectrum",
                   help="standard deviation of p(x|z): a fixed value, or a way to find it (docs/density.md)")
    p.add_argument("--labels", action="store_true", help="give the generator each image's label, beside its code")
    p.add_argument("--out", type=path, default=argparse.SUPPRESS,
                   help="directory of the new run (default: the next free runs/NAME-N)")
    p.add_argument("--log-every", type=log_every, default=100, help="training steps for each line of metrics.csv")
    p.add_argument("--eval-every", type=positive, default=1000,
                   help="training steps between evaluations on test images")
    p.add_argument("--checkpoint-every", type=positive, default=1000, help="training steps between checkpoints")


def resume_options(p):
    p.add_argument("--steps", type=positive, default=argparse.SUPPRESS,
                   help="training steps of the run in all, those already made included (default: as before)")
    p.add_argument("--lr", type=rate, default=argparse.SUPPRESS,
                   help="another learning rate from now on; the rate at the end changes in proportion")


def sample_options(p):
    p.add_argument("--count", type=positive, default=argparse.SUPPRESS,
                   help="number of images to draw, in rows of 20 (default: 200, or a row for each label); with "
                        "another number, seed or --label, the file's name says so")
    p.add_argument("--label", metavar="NAME", default=argparse.SUPPRESS,
                   help="the label of all images, where the run was trained with --labels (default: a row of each)")
    p.add_argument("--seed", type=seed, default=0, help="seed of the latent codes, and of --noise")
    p.add_argument("--noise", action="store_true",
                   help="draw images from p(x|z), instead of showing its mean; samples-noise.png has each row of "
                        "means above that of its draws")
    p.add_argument("--out", type=path, metavar="FOLDER|FILE.npz", default=argparse.SUPPRESS,
                   help="write each image as a PNG file into a new folder, or all as an array, and no picture; with "
                        "the labels, where the run has some")


def interpolate_options(p):
    p.add_argument("--pairs", nargs="+", metavar="NAME", default=argparse.SUPPRESS,
                   help="names of images, the two of a pair after each other: of files, such as cats/07.png, or "
                        "the numbers of those that are not files (default: the first ten pairs)")


def encode_options(p):
    p.add_argument("--out", type=path, metavar="FILE", default=argparse.SUPPRESS,
                   help="file to write, .h5, .npz or .csv (default: codes.h5 in the run's directory)")


def score_options(p):
    add_density_options(p, "importance")
    p.add_argument("--ais", action="store_true",
                   help="anneal as well, which takes seconds for each image: closer to ln p(x) than the bounds")
    p.add_argument("--out", type=path, metavar="FILE", default=argparse.SUPPRESS,
                   help="file to write, .csv, .h5 or .npz (default: scores.csv in the run's directory)")


def evaluate_options(p):
    add_density_options(p, *DENSITY)
    p.add_argument("--seed", type=seed, default=0, help="seed of all random draws")


def gradcheck_options(p):
    p.add_argument("--with", dest="mine", type=path, metavar="FILE", default=argparse.SUPPRESS,
                   help="a Python file whose functions replace operations of the definition (docs/exercises.md)")


def add_density_options(p, *names):
    """Options for these settings of DENSITY."""
    for name in names:
        what, cpu, gpu = DENSITY[name]
        p.add_argument(f"--{name.replace('_', '-')}", type=positive, default=argparse.SUPPRESS,
                       help=f"number of {what} (default: {cpu} on a CPU, {gpu} on a GPU)")


OWN_OPTIONS = {
    "train": train_options,
    "resume": resume_options,
    "sample": sample_options,
    "interpolate": interpolate_options,
    "encode": encode_options,
    "score": score_options,
    "evaluate": evaluate_options,
    "gradcheck": gradcheck_options,
}
