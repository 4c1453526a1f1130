"""minivae's command line: parse, call, print."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 (before anything that an older one cannot import)
    print("error: minivae needs Python 3.11 or newer; this is", sys.version.split()[0], file=sys.stderr)
    sys.exit(2)

try:
    import argparse
    import contextlib
    import os
    import re
    import signal
    import warnings
    from pathlib import Path
    from urllib.parse import quote

    from minivae import __version__
    from minivae.errors import UserError, did_you_mean, run_command, same_device
    from minivae.images import SOURCES
    from minivae.training import ranks
    from minivae.training.settings import (
        KLS,
        Config,
        batch_size,
        last_rate,
        log_every,
        positive,
        rate,
        seed,
        sigma,
        size,
    )
except KeyboardInterrupt:  # Ctrl-C as early as that: main() answers a later one
    print("error: interrupted", file=sys.stderr)
    sys.exit(130)

DATA = Path(os.environ.get("MINIVAE_DATA") or Path(__file__).resolve().parent / "data")
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
        p = train_parser()
    else:
        p = Parser(prog=f"python run.py {command}", description=COMMANDS[command].__doc__,
                   formatter_class=HelpFormatter)
    if command in OF_A_RUN:
        p.add_argument("run", metavar="RUN", help="directory of the run")
    if command in OF_IMAGES:
        p.add_argument("path", metavar="PATH", type=path, nargs="?",
                       help="images of your own, of any kind that train takes (default: the run's test images)")
    if command in OF_DATA:
        p.add_argument("--data", type=source, default=argparse.SUPPRESS,
                       help="where the run's images are now (default: where they were)")
    if command == "encode":
        p.add_argument("--out", type=path, metavar="FILE", default=argparse.SUPPRESS,
                       help="file to write, .h5, .npz or .csv (default: codes.h5 in the run's directory)")
    if command == "interpolate":
        p.add_argument("--pairs", nargs="+", metavar="NAME", default=argparse.SUPPRESS,
                       help="names of images, the two of a pair after each other: of files, such as cats/07.png, or "
                            "the numbers of those that are not files (default: the first ten pairs)")
    if command == "resume":
        p.add_argument("--steps", type=positive, default=argparse.SUPPRESS,
                       help="training steps of the run in all, those already made included (default: as before)")
        p.add_argument("--lr", type=rate, default=argparse.SUPPRESS,
                       help="another learning rate from now on; the rate at the end changes in proportion")
    if command == "sample":
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
                       help="write each image as a PNG file into a new folder, or all as an array, and no picture")
    if command == "evaluate":
        add_density_options(p, *DENSITY)
        p.add_argument("--seed", type=seed, default=0, help="seed of all random draws")
    if command == "score":
        add_density_options(p, "importance")
        p.add_argument("--ais", action="store_true",
                       help="anneal as well, which takes seconds for each image: closer to ln p(x) than the bounds")
        p.add_argument("--out", type=path, metavar="FILE", default=argparse.SUPPRESS,
                       help="file to write, .csv, .h5 or .npz (default: scores.csv in the run's directory)")
    if command == "gradcheck":
        p.add_argument("--with", dest="mine", type=path, metavar="FILE", default=argparse.SUPPRESS,
                       help="a Python file whose functions replace operations of the definition (docs/exercises.md)")
    p.add_argument("--gpu", action="store_true", help="run on the GPU with minivae's CUDA kernels")
    p.add_argument("--precision", choices=("tf32", "fp32"), default=argparse.SUPPRESS,
                   help=f"precision of matrix products on the GPU (default: {precision(command)})")
    return p


def add_density_options(p, *names):
    """Options for these settings of DENSITY."""
    for name in names:
        what, cpu, gpu = DENSITY[name]
        p.add_argument(f"--{name.replace('_', '-')}", type=positive, default=argparse.SUPPRESS,
                       help=f"number of {what} (default: {cpu} on a CPU, {gpu} on a GPU)")


def train_parser():
    names = ((f"{name} RUN" if name in OF_A_RUN else name, function.__doc__) for name, function in COMMANDS.items())
    about = "\n".join(["A variational autoencoder written from scratch.", "", "commands:",
                       *(f"  {name:<17}{what}" for name, what in names), "",
                       "python run.py COMMAND --help shows the options of a command. These are train's:"])
    p = Parser(prog="python run.py", usage="python run.py [COMMAND] [options]", description=about,
               formatter_class=HelpFormatter)
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
    return p


def precision(command):
    """tf32, where the card has it; fp32 for densities, which are quoted to the second decimal."""
    return "fp32" if command in ("evaluate", "score") else "tf32"


def density_settings(args):
    """Those of DENSITY, as given or by default."""
    return {name: getattr(args, name, gpu if args.gpu else cpu) for name, (_, cpu, gpu) in DENSITY.items()}


def operations(args):
    """The operations of the device that the user chose. UserError if there is no such device."""
    if args.ranks.size > 1 and args.command not in ON_RANKS:
        raise UserError(f"{args.command} is for one process; give the command without mpirun")
    same_device[:] = ["--gpu"] * args.gpu
    if "precision" in args:
        same_device.extend(["--precision", args.precision])
    if "precision" in args and not args.gpu:
        raise UserError("--precision is for the GPU alone; add --gpu, or leave it out")
    from minivae import ops

    found = ops.operations(args.gpu, getattr(args, "precision", precision(args.command)))
    if args.gpu:
        args.ranks = args.ranks.on_gpus()
    return found


def load_data(world, source, *how):
    """The data set, its notes printed. how: the size and skip_damaged of data.load."""
    from minivae.images import data

    try:
        with world.rank_0_first():  # it may have to make the files
            dataset = data.load(source, DATA, *how)
    except UserError as e:
        if source in SOURCES and not os.access(DATA, os.W_OK):
            raise UserError(f"{e}; or set the environment variable MINIVAE_DATA to a folder for data") from e
        raise
    for note in dataset.notes:
        print(note)
    return dataset


def train(args):
    """Train a model into a new run directory; without a command, this is done."""
    ops = operations(args)
    from minivae.images import labels
    from minivae.images.given import test_images
    from minivae.training import checkpoint, cost
    from minivae.training.loop import train as train_run
    from minivae.training.runs import Run, refuse_out
    from minivae.training.trainer import Trainer

    out = getattr(args, "out", None)
    refuse_out(out)
    start = checkpoint.open_model(args.start, ops) if "start" in args else None
    how = (getattr(args, "size", None), args.skip_damaged)
    dataset = load_data(args.ranks, args.data, *how)
    count = len(dataset.train.images)
    batch = getattr(args, "batch_size", min(64, count))
    print(f"{dataset.summary}; batches of {batch}")
    if batch > count:
        raise UserError(f"--batch-size {batch} exceeds the {count} training images")
    known = labels.names(dataset) if args.labels else []
    steps = getattr(args, "steps", 50000 if args.gpu else 2000)
    config = Config(args.data, steps, batch, args.latent, args.lr, args.seed, args.kl, args.log_every,
                    args.eval_every, args.checkpoint_every, dataset.train.images.shape[1:],
                    dataset.train.sha256, dataset.test.sha256, args.sigma, args.lr_end, *how,
                    label_names=known, labels_sha256=labels.sha256(dataset, known))
    test = test_images(dataset)
    print(cost.told(config, dataset.train.images, test.images, ops, args.ranks.size))
    trainer = Trainer(config, dataset.train.images, ops,
                      labels=labels.places(dataset.train, dataset.label_names, known), ranks=args.ranks)
    if start:
        checkpoint.start_from(*start, trainer)
        print(f"starting from the model of {config.origin}")
    run = Run(out or "", config) if args.ranks.rank else Run.create(out, dataset.name, config)
    print(f"{steps} steps on {count} images of {dataset.name}, into {run.folder}")
    test_labels = labels.places(test, dataset.label_names, known)
    return finish(run, trainer, train_run(run, trainer, test.images, test_labels=test_labels))


def resume(args):
    """Go on with a run, exactly where it stopped."""
    ops = operations(args)
    from minivae.images import labels
    from minivae.images.given import test_images
    from minivae.training import checkpoint, cost
    from minivae.training.loop import train as train_run
    from minivae.training.runs import Run
    from minivae.training.trainer import Trainer

    run = Run.open(args.run)
    if args.ranks.rank == 0:
        run.lock()
    dataset = matching_data(run, args)
    known = run.config.label_names
    test = test_images(dataset)
    print(cost.told(run.config, dataset.train.images, test.images, ops, args.ranks.size))
    trainer = Trainer(run.config, dataset.train.images, ops,
                      labels=labels.places(dataset.train, dataset.label_names, known), ranks=args.ranks)
    seconds = 0.0
    if (run / "checkpoint.h5").exists() or (run / checkpoint.PREVIOUS).exists():
        seconds = checkpoint.load_training(run / "checkpoint.h5", trainer)
    elif run.config.origin:
        raise UserError(f"{run.folder} has no checkpoint, and its first weights were those of {run.config.origin}; "
                        "start it again, in another folder")
    steps = getattr(args, "steps", run.config.steps)
    if steps <= trainer.step_count:
        raise UserError(f"{run.folder} has made {trainer.step_count} steps; give a larger --steps to go on")
    run.config.steps = steps
    before = run.config.lr
    if getattr(args, "lr", before) != before:
        run.config.change_rate(trainer.step_count, args.lr)
        print(f"--lr is {args.lr:g} from step {trainer.step_count} on, and was {before:g}")
    if args.ranks.rank == 0:
        run.forget_after(trainer.step_count)
        run.save_config()
    lr = run.config.learning_rate(trainer.step_count)
    print(f"going on from step {trainer.step_count} of {run.folder}, at a learning rate of {lr:g}")
    test_labels = labels.places(test, dataset.label_names, known)
    return finish(run, trainer, train_run(run, trainer, test.images, seconds, test_labels))


def finish(run, trainer, signal):
    """Say where everything is; the exit status of a run that `signal` (0 for none) ended."""
    print_pictures(run, "losses.png", "samples.png", "reconstructions.png")
    if signal and trainer.step_count < run.config.steps:
        print("stopped; go on with:", run_command("resume", run.folder))
    return 128 + signal if signal else 0


def matching_data(run, args):
    """The run's data set, from where it is now. UserError if its images or labels are not those it was made with."""
    from minivae.images import labels

    config = run.config
    config.data = getattr(args, "data", config.data)
    dataset = load_data(args.ranks, config.data, config.size, config.skip_damaged)
    print(dataset.summary)
    if (dataset.train.sha256, dataset.test.sha256) != (config.train_sha256, config.test_sha256):
        raise UserError(f"{config.data} holds other images than {run.folder} was trained on; restore the old ones, say "
                        "with --data where they are, or fine-tune the model in a new run: "
                        f"{run_command('--data', config.data, '--from', run.folder)}")
    if labels.sha256(dataset, config.label_names) != config.labels_sha256:
        raise UserError(f"{config.data} has other labels than {run.folder} was trained on; restore the old ones, or "
                        "say with --data where they are")
    return dataset


def images_of(run, args):
    """(split, label_names): the images that a command works on, each with a name: PATH's, or the run's test images."""
    from minivae.images import given

    if args.path is None:
        dataset = matching_data(run, args)
        return given.test_images(dataset), dataset.label_names
    config = run.config
    split, label_names = given.read(args.path, config.shape, config.size, config.skip_damaged)
    print(*split.notes, f"{len(split.images):,} images of {args.path}", sep="\n")
    return split, label_names


def open_model(args):
    """The run, its trained model, and what checkpoint.load_model says of it."""
    ops = operations(args)
    from minivae.training import checkpoint

    return checkpoint.open_model(args.run, ops)


def sample(args):
    """Draw samples.png: images of random latent codes."""
    run, vae, _ = open_model(args)
    from minivae.images import export
    from minivae.trained import TrainedVAE
    from minivae.training import figures

    model = TrainedVAE(vae, run.config.label_names)
    count = getattr(args, "count", figures.sample_count(vae))
    label = getattr(args, "label", None)
    number = None if label is None else model.number(label)
    if vae.label.classes and label is None:
        print("labels of the rows of 20, in turn:", ", ".join(run.config.label_names))
    if "out" in args:
        export.refuse_place(args.out)
        export.export(args.out, model.sample(count, args.seed, args.noise, label))
        print(args.out)
        return
    name = "samples-noise" if args.noise else "samples"
    if label is not None:
        name += f"-{quote(label, safe='')}"
    if count != figures.sample_count(vae) or args.seed != 0:
        name += f"-count{count}-seed{args.seed}"
    figures.draw_samples(run / f"{name}.png", vae, count, args.seed, number, args.noise)
    print_pictures(run, f"{name}.png")


def reconstruct(args):
    """Draw reconstructions.png: test images, or your own, beside their reconstructions."""
    run, vae, _ = open_model(args)
    from minivae.images import labels
    from minivae.training import figures

    split, label_names = images_of(run, args)
    given = labels.places(split, label_names, run.config.label_names)
    name = named_after(args.path, "reconstructions.png")
    figures.draw_reconstructions(run / name, vae, split.images, labels=given)
    print_pictures(run, name)


def interpolate(args):
    """Draw interpolation.png: between pairs of images, through the latent code."""
    names = getattr(args, "pairs", [])
    if len(names) % 2:
        raise UserError(f"--pairs has {len(names)} names; give two for each pair")
    run, vae, _ = open_model(args)
    from minivae.images import labels
    from minivae.images.given import rows_named
    from minivae.training import figures

    split, label_names = images_of(run, args)
    if names:
        split = split.take(rows_named(split.names, names))
    given = labels.places(split, label_names, run.config.label_names)
    name = named_after(args.path, "interpolation.png")
    figures.draw_interpolation(run / name, vae, split.images, len(names) // 2 or 10, labels=given)
    print_pictures(run, name)


def named_after(path, name):
    """The file name with that of the user's images in it, so that what was drawn of test images stays."""
    return name if path is None else f"{Path(name).stem}-{path.stem}{Path(name).suffix}"


def traverse(args):
    """Draw traverse.png: the latents one by one, each moved from -3 to 3."""
    run, vae, _ = open_model(args)
    from minivae.density.estimates import kl_per_latent
    from minivae.images import labels
    from minivae.trained import TrainedVAE
    from minivae.training import figures

    split, label_names = images_of(run, args)
    mean, var = TrainedVAE(vae).encode(split.images)
    kl = kl_per_latent(mean, var).mean(0)
    name = named_after(args.path, "traverse.png")
    of_first = labels.places(split.take([0]), label_names, run.config.label_names)
    figures.draw_traversal(run / name, vae, mean[0] if args.path else 0 * mean[0], kl, labels=of_first)
    around = f"the code of {split.names[0]}" if args.path else "0, the mean of the prior"
    if of_first is not None:
        around += f", with the label {run.config.label_names[of_first[0]]}"
    print(f"around {around}; one latent a row, by its KL(q(z|x) || p(z)), nats, of {len(mean):,} images:",
          *(f"z{latent} {kl[latent]:.2f}" for latent in kl.argsort()[::-1]))
    print_pictures(run, name)


def encode(args):
    """Write codes.h5: the mean and the variance of q(z|x) of every image, with its name and label."""
    run, vae, _ = open_model(args)
    from minivae.images import table
    from minivae.trained import TrainedVAE

    file = getattr(args, "out", run / named_after(args.path, "codes.h5"))
    table.refuse_file(file)
    split, label_names = images_of(run, args)
    mean, var = TrainedVAE(vae).encode(split.images)
    table.write(file, split, label_names, mean=mean, var=var)
    print(file)


def score(args):
    """Estimate ln p(x) of every image: scores.csv, and scores.png with the least and the most likely ones."""
    run, vae, (step, _) = open_model(args)
    from minivae.density import score
    from minivae.images import labels, table

    file = getattr(args, "out", run / named_after(args.path, "scores.csv"))
    table.refuse_file(file)
    split, label_names = images_of(run, args)
    given = labels.places(split, label_names, run.config.label_names)
    card = score.known_card(run, step)
    settings = density_settings(args) | {"seed": 0} | {name: card[name] for name in score.SETTINGS if name in card}
    if "importance" in args:
        settings["importance"] = args.importance
    test_elbo = card.get("bounds", {}).get("elbo_each")
    columns = score.score(vae, split.images, given, settings, args.ais, test_elbo, args.ranks)
    if args.ranks.rank:  # the first writes
        return
    table.write(file, split, label_names, **columns)
    picture = run / named_after(args.path, "scores.png")
    score.draw(picture, vae, split.images, given, columns)
    if not card:
        print("ranks among the run's test images are left out: evaluate finds what those are compared with")
    print(score.LIMITS, file, picture, sep="\n")


def evaluate(args):
    """Estimate ln p(x) of test images: density.json, density.png and the same on the screen."""
    from minivae.density import card

    run, vae, (step, moving) = open_model(args)
    dataset = matching_data(run, args)
    card.evaluate(run, vae, moving, dataset, step, args.ranks, **density_settings(args), seed=args.seed)
    print_pictures(run, "density.png", "density.json")


def gradcheck(args):
    """Compare every gradient with finite differences."""
    ops = operations(args)
    from minivae import checks, exercises

    good = exercises.run(ops, str(args.mine)) if "mine" in args else checks.run(ops)
    return 0 if good else 1


def print_pictures(run, *names):
    print(*(run / name for name in names), sep="\n")


COMMANDS = {f.__name__: f for f in (train, resume, sample, reconstruct, interpolate, traverse, encode, score,
                                    evaluate, gradcheck)}
OF_A_RUN = COMMANDS.keys() - {"train", "gradcheck"}
OF_DATA = OF_A_RUN - {"sample"}
OF_IMAGES = {"reconstruct", "interpolate", "traverse", "encode", "score"}
ON_RANKS = {"train", "resume", "score", "evaluate"}


def main(argv):
    warnings.simplefilter("ignore", RuntimeWarning)  # of NumPy's overflows: training looks for what is not finite
    try:
        world = ranks.start()
        args = parse(argv)
        args.ranks = world
        status = COMMANDS[args.command](args) or 0
        sys.stdout.flush()
        return status
    except UserError as e:
        return failed(e)
    except MemoryError as e:  # CuPy's too
        return failed(f"out of memory ({str(e) or 'none is left'}); smaller batches or smaller images need less")
    except RuntimeError as e:
        if "start new thread" not in str(e):
            raise
        return failed("out of memory: no other thread can be started; give the process more, or fewer OMP_NUM_THREADS")
    except ModuleNotFoundError as e:
        return failed(f"{e.name} is not installed; run: pip install -r requirements.txt")
    except ImportError as e:
        return failed(f"a library cannot be loaded ({e.__cause__ or e}); memory may be short, or its installation "
                      "damaged: pip install --force-reinstall -r requirements.txt")
    except OSError as e:
        if sys.stdout is sys.__stdout__:  # what it still holds would be flushed at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(e, BrokenPipeError):  # whoever read the output has gone
            ranks.end_all(128 + signal.SIGPIPE)
            return 128 + signal.SIGPIPE
        if e.errno and e.filename is None:  # an error of a file has its name
            return failed(f"standard output cannot be written ({e.strerror}); let it go elsewhere. A run that had "
                          "begun is saved: resume goes on with it")
        return failed(f"{e}; fix that, then give the same command again")
    except KeyboardInterrupt:
        return failed("interrupted", 130)


def failed(what, status=2):
    ranks.let_rank_0_speak_first()
    with contextlib.suppress(OSError):  # nobody may be reading that any more
        print(f"error: {' '.join(str(what).split())}", file=sys.stderr)
    ranks.end_all(status)
    return status


def prepare_process():
    """Lines appear at once in a pipe or a file too; names that an encoding lacks are escaped; no window is opened.

    Standard streams that were closed (`>&-`) go to the null device, or the next files opened would take their place.
    A notebook, whose %run puts its own streams in place of them, is left as it is.
    """
    if sys.stdout is not sys.__stdout__:
        return
    while os.open(os.devnull, os.O_RDWR) <= 2:  # each call takes the lowest free descriptor
        pass
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    os.environ["MPLBACKEND"] = "agg"
    if ranks.rank_of_launch():  # rank 0 alone prints
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    prepare_process()
    sys.exit(main(sys.argv[1:]))
