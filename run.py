"""minivae's command line: parse, call, print."""

import argparse
import contextlib
import os
import signal
import sys
import warnings
from pathlib import Path

from minivae.errors import UserError
from minivae.training.settings import KLS, batch_size, log_every, positive, rate, seed, sigma

DATA = Path(__file__).resolve().parent / "data"
SOURCES = ("housenumbers", "svhn", "svhn-extra")
ABOUT = """A variational autoencoder written from scratch.

commands:
  train (or none)      train a model into a new run directory
  resume RUN           go on, exactly where it stopped
  sample RUN           samples.png: images of random latent codes
  reconstruct RUN      reconstructions.png: test images beside their reconstructions
  interpolate RUN      interpolation.png: between pairs of test images, through the latent code
  evaluate RUN         the density card: what ln p(x) is, and how surely (density.json, density.png)
  gradcheck            every gradient against finite differences

python run.py COMMAND --help tells a command's options."""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message}; see: {self.prog} --help")


def parser():
    formatter = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter}
    top = Parser(prog="python run.py", description=ABOUT, usage="python run.py [COMMAND] [options]",
                 formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(prog="python run.py", dest="command", metavar="COMMAND", help=argparse.SUPPRESS)

    p = commands.add_parser("train", help="train a model", **formatter)
    p.add_argument("--data", default="housenumbers",
                   help=f"{', '.join(SOURCES)}; or a path: a folder with SVHN's .mat files or images, an .npz, an .h5")
    p.add_argument("--steps", type=positive, default=argparse.SUPPRESS,
                   help="updates (default: 2000 on a CPU, 50000 on a GPU)")
    p.add_argument("--batch-size", type=batch_size, default=64, help="images per update")
    p.add_argument("--latent", type=positive, default=10, help="dimensions of the latent code")
    p.add_argument("--lr", type=rate, default=1e-3, help="Adam's learning rate")
    p.add_argument("--seed", type=seed, default=0, help="decides the initial weights, the batches and the noise")
    p.add_argument("--kl", choices=KLS, default="sample", help="one-sample or exact KL term")
    p.add_argument("--sigma", type=sigma, default=1.0, metavar="1|VALUE|optimal|learned|pixel",
                   help="standard deviation of p(x|z): fixed, or found as the name says")
    p.add_argument("--out", help="the run directory (default: the next free runs/NAME-N)", default=argparse.SUPPRESS)
    p.add_argument("--log-every", type=log_every, default=100, help="updates per line of metrics.csv")
    p.add_argument("--eval-every", type=positive, default=1000, help="updates between evaluations on test images")
    p.add_argument("--checkpoint-every", type=positive, default=1000, help="updates between checkpoints")

    p = commands.add_parser("resume", help="go on with a run", **formatter)
    p.add_argument("run", metavar="RUN", help="its directory")
    p.add_argument("--steps", type=positive, help="train on to this many updates in all", default=argparse.SUPPRESS)

    p = commands.add_parser("sample", help="draw samples.png", **formatter)
    p.add_argument("run", metavar="RUN", help="its directory")
    p.add_argument("--count", type=positive, default=200, help="images, in rows of 20")
    p.add_argument("--seed", type=seed, default=0, help="of the latent codes")

    for name, what in (("reconstruct", "reconstructions.png"), ("interpolate", "interpolation.png")):
        p = commands.add_parser(name, help=f"draw {what}", **formatter)
        p.add_argument("run", metavar="RUN", help="its directory")
    p = commands.add_parser("evaluate", help="estimate ln p(x)", **formatter)
    p.add_argument("run", metavar="RUN", help="its directory")
    for name, what, cpu, gpu in (("images", "test images for the bounds", 1000, 1000),
                                 ("importance", "importance samples for each", 100, 1000),
                                 ("ais-images", "test images for annealed importance sampling", 16, 64),
                                 ("ais-chains", "its chains for each image", 4, 16),
                                 ("ais-steps", "its temperatures", 50, 1000)):
        p.add_argument(f"--{name}", type=positive, default=argparse.SUPPRESS,
                       help=f"{what} (default: {cpu} on a CPU, {gpu} on a GPU)")
    p.add_argument("--seed", type=seed, default=0, help="of all draws")
    commands.add_parser("gradcheck", help="check every gradient", **formatter)

    for name, p in commands.choices.items():
        p.add_argument("--gpu", action="store_true", help="run on the GPU with minivae's CUDA kernels")
        p.add_argument("--precision", choices=("tf32", "fp32"), default=argparse.SUPPRESS,
                       help=f"of products on the GPU (default: {precision(name)})")
    return top


def precision(command):
    """tf32, where the card has it; fp32 for densities, which are quoted to the second decimal."""
    return "fp32" if command == "evaluate" else "tf32"


def operations(args):
    """The operations of the device that the user chose. UserError if there is no such device."""
    if args.gpu:
        from minivae.ops import cuda_module

        cuda_module.require_gpu(getattr(args, "precision", precision(args.command)))
        from minivae.ops import cuda_ops

        return cuda_ops
    if "precision" in args:
        raise UserError("--precision is a choice of the GPU's; add --gpu, or leave it out")
    from minivae.ops import numpy_ops

    return numpy_ops


def load_data(source):
    """The data set, its notes printed. A path is looked at as the user gave it, then kept absolute."""
    from minivae.images import data

    dataset = data.load(source, DATA)
    for note in dataset.notes:
        print(note)
    return dataset


def train(args):
    ops = operations(args)
    from minivae.images.data import test_subset
    from minivae.training.loop import train as train_run
    from minivae.training.runs import Run
    from minivae.training.settings import Config
    from minivae.training.trainer import Trainer

    source = args.data if args.data in SOURCES else str(Path(args.data).resolve())
    dataset = load_data(source)
    if args.batch_size > len(dataset.train.images):
        raise UserError(f"--batch-size {args.batch_size} exceeds the {len(dataset.train.images)} training images")
    steps = getattr(args, "steps", 50000 if args.gpu else 2000)
    config = Config(source, steps, args.batch_size, args.latent, args.lr, args.seed, args.kl, args.log_every,
                    args.eval_every, args.checkpoint_every, dataset.train.images.shape[1:],
                    dataset.train.sha256, dataset.test.sha256, args.sigma)
    trainer = Trainer(config, dataset.train.images, ops)
    run = Run.create(getattr(args, "out", None), dataset.name, config)
    print(f"{steps} steps on {len(dataset.train.images)} images of {dataset.name}, into {run.folder}")
    return finish(run, trainer, train_run(run, trainer, test_subset(dataset.test.images)))


def resume(args):
    ops = operations(args)
    from minivae.images.data import test_subset
    from minivae.training import checkpoint
    from minivae.training.loop import train as train_run
    from minivae.training.runs import Run
    from minivae.training.trainer import Trainer

    run = Run.open(args.run)
    run.lock()
    dataset = matching_data(run)
    trainer = Trainer(run.config, dataset.train.images, ops)
    seconds = 0.0
    if (run / "checkpoint.h5").exists() or (run / checkpoint.PREVIOUS).exists():
        seconds = checkpoint.load_training(run / "checkpoint.h5", trainer)
    steps = getattr(args, "steps", run.config.steps)
    if steps <= trainer.step_count:
        raise UserError(f"{run.folder} has made {trainer.step_count} steps; give a larger --steps to go on")
    run.forget_after(trainer.step_count)
    run.config.steps = steps
    run.save_config()
    print(f"going on from step {trainer.step_count} of {run.folder}")
    return finish(run, trainer, train_run(run, trainer, test_subset(dataset.test.images), seconds))


def finish(run, trainer, signal):
    """Say where everything is; the exit status of a run that `signal` (0 for none) ended."""
    print_pictures(run, "losses.png", "samples.png", "reconstructions.png")
    if signal and trainer.step_count < run.config.steps:
        print(f"stopped; go on with: python run.py resume {run.folder}")
    return 128 + signal if signal else 0


def matching_data(run):
    """The run's data set. UserError if its images are not those that the run was made with."""
    dataset = load_data(run.config.data)
    if (dataset.train.sha256, dataset.test.sha256) != (run.config.train_sha256, run.config.test_sha256):
        raise UserError(f"{run.config.data} holds other images than {run.folder} was trained on; restore the old ones")
    return dataset


def open_model(args):
    """The run, its trained model, and after how many steps it was saved."""
    ops = operations(args)
    from minivae.training import checkpoint
    from minivae.training.runs import Run
    from minivae.vae import VAE

    run = Run.open(args.run)
    vae = VAE(run.config.shape, run.config.latent, ops, kl=run.config.kl, sigma=run.config.sigma)
    step = checkpoint.load_model(run / "checkpoint.h5", vae, run.config)
    return run, vae, step


def sample(args):
    run, vae, _ = open_model(args)
    from minivae.training import figures

    of_training = args.count == 200 and args.seed == 0
    name = "samples.png" if of_training else f"samples-count{args.count}-seed{args.seed}.png"
    figures.draw_samples(run / name, vae, args.count, args.seed)
    print_pictures(run, name)


def reconstruct(args):
    run, vae, _ = open_model(args)
    from minivae.images.data import test_subset
    from minivae.training import figures

    figures.draw_reconstructions(run / "reconstructions.png", vae, test_subset(matching_data(run).test.images))
    print_pictures(run, "reconstructions.png")


def interpolate(args):
    run, vae, _ = open_model(args)
    from minivae.images.data import test_subset
    from minivae.training import figures

    figures.draw_interpolation(run / "interpolation.png", vae, test_subset(matching_data(run).test.images))
    print_pictures(run, "interpolation.png")


def evaluate(args):
    from minivae.density import card

    run, vae, step = open_model(args)
    settings = {name: getattr(args, name, value) for name, value in (card.GPU if args.gpu else card.CPU).items()}
    card.evaluate(run, vae, matching_data(run), step, **settings, seed=args.seed)
    print_pictures(run, "density.png", "density.json")


def gradcheck(args):
    ops = operations(args)
    from minivae import checks

    return 0 if checks.run(ops) else 1


def print_pictures(run, *names):
    for name in names:
        print(run / name)


COMMANDS = {f.__name__: f for f in (train, resume, sample, reconstruct, interpolate, evaluate, gradcheck)}


def main(argv):
    if not argv or (argv[0] not in COMMANDS and argv[0] not in ("-h", "--help")):
        argv = ["train", *argv]
    warnings.simplefilter("ignore", RuntimeWarning)  # of NumPy's overflows: training looks for what is not finite
    try:
        args = parser().parse_args(argv)
        status = COMMANDS[args.command](args) or 0
        sys.stdout.flush()
        return status
    except UserError as e:
        return failed(e)
    except MemoryError as e:  # CuPy's too
        return failed(f"out of memory ({e}); smaller batches or smaller images need less")
    except ModuleNotFoundError as e:
        return failed(f"{e.name} is not installed; run: pip install -r requirements.txt")
    except OSError as e:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # it may be stdout, which is flushed at exit
        if isinstance(e, BrokenPipeError):  # whoever read the output has gone
            return 128 + signal.SIGPIPE
        return failed(f"{e}; mend that, then give the same command again")
    except KeyboardInterrupt:
        return failed("interrupted; a run goes on from its last checkpoint: run.py resume RUN", 130)


def failed(what, status=2):
    with contextlib.suppress(OSError):  # nobody may be reading that any more
        print(f"error: {' '.join(str(what).split())}", file=sys.stderr)
    return status


def open_standard_streams():
    """Give those that were closed (`>&-`) to the null device, or the next file opened would take their place."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


if __name__ == "__main__":
    open_standard_streams()
    sys.stdout.reconfigure(line_buffering=True)  # a training can be watched through a pipe or in a file too
    sys.exit(main(sys.argv[1:]))
