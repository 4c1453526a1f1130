"""A run's settings, and the values that each may have: options.py and config.json share these parsers."""

import contextlib
import json
import re
import sys
from argparse import ArgumentTypeError
from dataclasses import dataclass, field
from math import ulp

from minivae.errors import UserError
from minivae.files import cannot_read

KLS = ("sample", "analytic")
TREADS = 100  # of the stairs that the learning rate goes down


def checked(valid, value, words):
    """The value if it is valid; ArgumentTypeError, "VALUE is not WORDS", otherwise."""
    if not valid:
        raise ArgumentTypeError(f"{value!r:.80} is not {words}")
    return value


def number(kind, low, high, words):
    """A parser of ints or floats from low to high, given as numbers or as their text."""

    def parse(value):
        with contextlib.suppress(ValueError):
            value = kind(value) if isinstance(value, str) else value
        valid = type(value) in (int, kind) and low <= value <= high
        return kind(checked(valid, value, words))

    return parse


positive = number(int, 1, 10**12, "a whole number from 1 to 10^12")
step_count = number(int, 0, 10**12, "a whole number from 0 to 10^12")
batch_size = number(int, 2, 10**9, "a whole number of at least 2, and at most 10^9")
log_every = number(int, 1, 10**6, "a whole number from 1 to 1000000")  # losses are kept until their line is written
seed = number(int, 0, 2**32 - 1, "a whole number from 0 to 4294967295")
rate = number(float, ulp(0), sys.float_info.max, "a number above 0")
last_rate = number(float, 0, sys.float_info.max, "a number of at least 0")


def sigma(value):
    """A positive float, or one of the names in sigmas.FITTED_SIGMAS."""
    from minivae.sigmas import FITTED_SIGMAS  # not at the top: help is printed without loading NumPy

    words = f"a number above 0, or one of {', '.join(FITTED_SIGMAS)}"
    if isinstance(value, str) and value in FITTED_SIGMAS:
        return value
    return number(float, ulp(0), sys.float_info.max, words)(value)


def kl(value):
    return checked(value in KLS, value, f"one of {', '.join(KLS)}")


def shape(value):
    """(H, W, C) of a list."""
    valid = (isinstance(value, list) and len(value) == 3 and all(type(n) is int and n > 0 for n in value)
             and value[0] % 8 == value[1] % 8 == 0 and value[2] in (1, 3))
    return tuple(checked(valid, value, "[height, width, channels] with sides that 8 divides, and 1 or 3 channels"))


def size(value):
    """[H, W], to which images are cropped and scaled, of "N", "HxW" or a list; None leaves them as they are."""
    if value is None:
        return None
    sides = value
    if isinstance(value, str) and (match := re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", value)):
        sides = [int(match[1]), int(match[2] or match[1])]
    valid = (isinstance(sides, list) and len(sides) == 2 and all(type(n) is int and n > 0 for n in sides)
             and sides[0] % 8 == sides[1] % 8 == 0)
    checked(valid, value, "a side or HEIGHTxWIDTH, in pixels that 8 divides")
    return sides


def rates(value):
    """[[step, rate], ...], as lists."""
    valid = isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value)
    return [[step_count(step), rate(lr)] for step, lr in checked(valid, value, "a list of [step, rate]")]


def flag(value):
    return checked(isinstance(value, bool), value, "true or false")


def text(value):
    return checked(isinstance(value, str), value, "a text")


def texts(value):
    valid = isinstance(value, list) and all(isinstance(v, str) for v in value) and len(set(value)) == len(value)
    return checked(valid, value, "a list of different texts")


PARSERS = {
    "data": text, "steps": positive, "batch_size": batch_size, "latent": positive, "lr": rate, "seed": seed, "kl": kl,
    "log_every": log_every, "eval_every": positive, "checkpoint_every": positive, "shape": shape,
    "train_sha256": text, "test_sha256": text, "sigma": sigma, "lr_end": last_rate, "size": size, "skip_damaged": flag,
    "earlier_rates": rates, "origin": text, "label_names": texts, "labels_sha256": text,
}


@dataclass
class Config:
    """All that decides a run's numbers. data is a source's name or an absolute path; losses are nats per image.

    lr_end None stands for lr: the rate is then constant. earlier_rates [[step, lr], ...] has each lr that was changed
    by a resume, and the step until which it was used. origin says which run's model this one started from, "" if from
    random weights. label_names has what the labels that the generator is given are called; it is empty if it is given
    none.
    """

    data: str
    steps: int
    batch_size: int
    latent: int
    lr: float
    seed: int
    kl: str
    log_every: int
    eval_every: int
    checkpoint_every: int
    shape: tuple
    train_sha256: str
    test_sha256: str
    sigma: float | str = 1.0
    lr_end: float | None = None
    size: list | None = None
    skip_damaged: bool = False
    earlier_rates: list = field(default_factory=list)
    origin: str = ""
    label_names: list = field(default_factory=list)
    labels_sha256: str = ""

    def __post_init__(self):
        if self.lr_end is None:
            self.lr_end = self.lr

    def learning_rate(self, step):
        """That of the step after `step` finished ones: lr, and in the last quarter of the run down to lr_end.

        It goes down in stairs, because a GPU has to be told each new value.
        """
        tread = (4 * step - 3 * self.steps) * TREADS // self.steps
        tread = min(max(tread, 0), TREADS)
        return self.lr + (self.lr_end - self.lr) * tread / TREADS

    def change_rate(self, step, lr):
        """Go on from `step` with another lr; lr_end stays in proportion, so that a constant rate stays constant."""
        self.earlier_rates.append([step, self.lr])
        self.lr_end = lr * (self.lr_end / self.lr)
        self.lr = lr

    @classmethod
    def parse(cls, json_text):
        """The Config of a JSON text. ValueError or TypeError if it is none; ArgumentTypeError names a wrong value."""
        config = cls(**json.loads(json_text))
        for name, parser in PARSERS.items():
            try:
                setattr(config, name, parser(getattr(config, name)))
            except ArgumentTypeError as e:
                raise ArgumentTypeError(f"{name} {e}") from e
        return config

    @classmethod
    def read(cls, path):
        """The Config that a config.json holds. UserError if it cannot be read, is not one, or has a wrong value."""
        try:
            return cls.parse(path.read_text())
        except OSError as e:
            raise cannot_read(path, e) from e
        except ArgumentTypeError as e:
            raise UserError(f"{path}: {e}; put the right value back, or start a new run") from e
        except (ValueError, TypeError, RecursionError) as e:
            raise UserError(f"{path} is not a run's configuration ({e}); it must be JSON with "
                            f"{', '.join(PARSERS)}") from e
