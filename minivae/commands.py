"""run.py's commands: a function for each of options.COMMANDS, which says what it does.

args are what options.parse returns, with the ranks of this process. The exit status is what a function returns, 0 for
None. UserError if something of the user's is not as it must be.
"""

import os
from pathlib import Path
from urllib.parse import quote

from minivae import checks, exercises
from minivae.density import card
from minivae.density import score as scoring
from minivae.density.estimates import kl_per_latent
from minivae.errors import UserError, run_command, same_device
from minivae.images import SOURCES, data, export, given, labels, table
from minivae.ops import operations
from minivae.options import DENSITY, precision
from minivae.trained import TrainedVAE
from minivae.training import checkpoint, cost, figures, loop
from minivae.training.runs import Run, refuse_out
from minivae.training.settings import Config
from minivae.training.trainer import Trainer

DATA = Path(os.environ.get("MINIVAE_DATA") or Path(__file__).resolve().parents[1] / "data")
ON_RANKS = {"train", "resume", "score", "evaluate"}


def train(args):
    ops = chosen_operations(args)
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
    trainer = new_trainer(config, dataset, ops, args.ranks)
    if start:
        checkpoint.start_from(*start, trainer)
        print(f"starting from the model of {config.origin}")
    run = Run(out or "", config) if args.ranks.rank else Run.create(out, dataset.name, config)
    print(f"{steps} steps on {count} images of {dataset.name}, into {run.folder}")
    return train_to_the_end(run, trainer, dataset)


def resume(args):
    ops = chosen_operations(args)
    run = Run.open(args.run)
    if args.ranks.rank == 0:
        run.lock()
    dataset = matching_data(run, args)
    trainer = new_trainer(run.config, dataset, ops, args.ranks)
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
    return train_to_the_end(run, trainer, dataset, seconds)


def sample(args):
    if "out" in args:
        export.refuse_place(args.out)
    run, vae, *_ = checkpoint.open_model(args.run, chosen_operations(args))
    model = TrainedVAE(vae, run.config.label_names)
    count = getattr(args, "count", figures.sample_count(vae))
    label = getattr(args, "label", None)
    number = None if label is None else model.number(label)
    if vae.label.classes and label is None:
        print(f"{figures.GRID_COLUMNS} images of each label in turn:", ", ".join(run.config.label_names))
    if "out" in args:
        numbers = figures.sample_labels(vae, count, number)
        names = None if numbers is None else [run.config.label_names[number] for number in numbers]
        export.export(args.out, model.sample(count, args.seed, args.noise, label), names)
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
    run, vae, *_ = checkpoint.open_model(args.run, chosen_operations(args))
    split = images_of(run, args)
    split_labels = labels.places(split, run.config.label_names)
    name = named_after(args.path, "reconstructions.png")
    figures.draw_reconstructions(run / name, vae, split.images, labels=split_labels)
    print_pictures(run, name)


def interpolate(args):
    names = getattr(args, "pairs", [])
    if len(names) % 2:
        raise UserError(f"--pairs has an odd number of names ({len(names)}); give two for each pair")
    run, vae, *_ = checkpoint.open_model(args.run, chosen_operations(args))
    split = images_of(run, args)
    if names:
        split = split.take(given.rows_named(split.names, names))
    split_labels = labels.places(split, run.config.label_names)
    name = named_after(args.path, "interpolation.png")
    figures.draw_interpolation(run / name, vae, split.images, len(names) // 2 or 10, labels=split_labels)
    print_pictures(run, name)


def traverse(args):
    run, vae, *_ = checkpoint.open_model(args.run, chosen_operations(args))
    split = images_of(run, args)
    mean, var = TrainedVAE(vae).encode(split.images)
    kl = kl_per_latent(mean, var).mean(0)
    name = named_after(args.path, "traverse.png")
    of_first = labels.places(split.take([0]), run.config.label_names)
    figures.draw_traversal(run / name, vae, mean[0] if args.path else 0 * mean[0], kl, labels=of_first)
    around = f"the code of {split.names[0]}" if args.path else "0, the mean of the prior"
    if of_first is not None:
        around += f", with the label {run.config.label_names[of_first[0]]}"
    print(f"around {around}; one latent a row, by its KL(q(z|x) || p(z)), nats, of {len(mean):,} images:",
          *(f"z{latent} {kl[latent]:.2f}" for latent in kl.argsort()[::-1]))
    print_pictures(run, name)


def encode(args):
    run, vae, *_ = checkpoint.open_model(args.run, chosen_operations(args))
    file = getattr(args, "out", run / named_after(args.path, "codes.h5"))
    table.refuse_file(file)
    split = images_of(run, args)
    mean, var = TrainedVAE(vae).encode(split.images)
    table.write(file, split, mean=mean, var=var)
    print(file)


def score(args):
    run, vae, step, _ = checkpoint.open_model(args.run, chosen_operations(args))
    file = getattr(args, "out", run / named_after(args.path, "scores.csv"))
    table.refuse_file(file)
    split = images_of(run, args)
    split_labels = labels.places(split, run.config.label_names)
    run_card = scoring.known_card(run, step)
    settings = density_settings(args) | {"seed": 0}
    settings |= {name: run_card[name] for name in scoring.SETTINGS if name in run_card}
    if "importance" in args:
        settings["importance"] = args.importance
    test_elbo = run_card.get("bounds", {}).get("elbo_each")
    columns = scoring.score(vae, split.images, split_labels, settings, args.ais, test_elbo, args.ranks)
    if args.ranks.rank:  # the first writes
        return
    table.write(file, split, **columns)
    picture = run / named_after(args.path, "scores.png")
    scoring.draw(picture, vae, split.images, split_labels, columns)
    if not run_card:
        print("ranks among the run's test images are left out: evaluate finds what those are compared with")
    print(scoring.LIMITS, file, picture, sep="\n")


def evaluate(args):
    run, vae, step, moving = checkpoint.open_model(args.run, chosen_operations(args))
    dataset = matching_data(run, args)
    card.evaluate(run, vae, moving, dataset, step, args.ranks, **density_settings(args), seed=args.seed)
    print_pictures(run, "density.png", "density.json")


def gradcheck(args):
    ops = chosen_operations(args)
    good = exercises.run(ops, str(args.mine)) if "mine" in args else checks.run(ops)
    return 0 if good else 1


def chosen_operations(args):
    """The operations of the device that the user chose. UserError if there is no such device."""
    if args.ranks.size > 1 and args.command not in ON_RANKS:
        raise UserError(f"{args.command} is for one process; give the command without mpirun")
    same_device[:] = ["--gpu"] * args.gpu
    if "precision" in args:
        same_device.extend(["--precision", args.precision])
    if "precision" in args and not args.gpu:
        raise UserError("--precision is for the GPU alone; add --gpu, or leave it out")
    found = operations(args.gpu, getattr(args, "precision", precision(args.command)))
    if args.gpu:
        args.ranks = args.ranks.on_gpus()
    return found


def density_settings(args):
    """Those of DENSITY, as given or by default."""
    return {name: getattr(args, name, gpu if args.gpu else cpu) for name, (_, cpu, gpu) in DENSITY.items()}


def load_data(world, source, *how):
    """The data set, its notes printed. how: the size and skip_damaged of data.load."""
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


def matching_data(run, args):
    """The run's data set, from where it is now. UserError if its images or labels are not those it was made with."""
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
    """The Split that a command works on, in which each image has a name: PATH's, or the run's test images."""
    if args.path is None:
        return given.test_images(matching_data(run, args))
    config = run.config
    split = given.read(args.path, config.shape, config.size, config.skip_damaged)
    print(*split.notes, f"{len(split.images):,} images of {args.path}", sep="\n")
    return split


def new_trainer(config, dataset, ops, ranks):
    """A trainer before its first step; what it takes is told, or refused, before anything of it is made."""
    print(cost.told(config, dataset.train.images, dataset.test.images, ops, ranks.size))
    train_labels = labels.places(dataset.train, config.label_names)
    return Trainer(config, dataset.train.images, ops, labels=train_labels, ranks=ranks)


def train_to_the_end(run, trainer, dataset, seconds=0.0):
    """Train, and say where everything is; the exit status."""
    test = given.test_images(dataset)
    test_labels = labels.places(test, run.config.label_names)
    return finish(run, trainer, loop.train(run, trainer, test.images, seconds, test_labels))


def finish(run, trainer, signal):
    """Say where everything is; the exit status of a run that `signal` (0 for none) ended."""
    print_pictures(run, "losses.png", "samples.png", "reconstructions.png")
    if signal and trainer.step_count < run.config.steps:
        print("stopped; go on with:", run_command("resume", run.folder))
    return 128 + signal if signal else 0


def named_after(path, name):
    """The file name with that of the user's images in it, so that what was drawn of test images stays."""
    return name if path is None else f"{Path(name).stem}-{path.stem}{Path(name).suffix}"


def print_pictures(run, *names):
    print(*(run / name for name in names), sep="\n")
