"""`gradcheck --with FILE`: what it says to solutions of docs/exercises.md; right ones call the definition's own."""

import inspect
import re

import pytest

from minivae import checks
from minivae.exercises import OPERATIONS
from minivae.ops import plain
from run import main

LEARNED = {"sigma": "learned"}
WRONG = [  # operation, what a reader got wrong, the row to look at first, settings of a case that shows it
    ("dense_dx", "dx *= 1.01", "z", {}),
    ("dense_dw", "dw[0] = 0", "gen/dense/w", {}),
    ("col2im", "dx[:, 0] = 0", "gen/tconv3/w", {}),
    ("conv_dw", "dw[...] = dw[::-1]", "gen/tconv3/w", {}),
    ("batch_norm_dx", "if not train: dx *= 1.1", "gen/tconv2/w", {"train": False}),
    ("batch_norm_dx", "dgamma *= -1", "gen/tconv2/gamma", {}),
    ("latent_dx", "dmean -= scale * z", "enc/mean/beta", {}),
    ("latent_dx", "if analytic: ds += scale", "enc/var/beta", {"kl": "analytic"}),
    ("tanh_gaussian", "da *= 2", "gen/tconv3/w", {}),
    ("log_sigma_dx", "dlog_sigma *= -1", "gen/log_sigma", LEARNED),
    ("tanh_gaussian_pixel", "db[1] = 0", "gen/tconv3/b", {"sigma": "pixel"}),
    ("append_label", "zy[:, 0] = 0", "z", {"classes": 3}),
    ("append_label_dx", "dz[...] = dzy[:, -dz.shape[1] :]", "z", {"classes": 3}),
    ("student", "dlog_scale *= 2", "gen/spectrum/scales/w", {"sigma": "spectrum"}),
    ("bias_tanh_dx", "db *= 2", "gen/spectrum/hidden/b", {"sigma": "spectrum"}),
    ("log_energy_dx", "df *= 2", "x", {"sigma": "spectrum"}),
    ("add", "total -= term", "enc/dense/beta", {}),
]
HALF_KL = """
from minivae.ops import plain

def latent(mean, s, eps, analytic, z, var, kl):
    plain.latent(mean, s, eps, analytic, z, var, kl)
    kl /= 2

def latent_dx(dz, mean, s, eps, analytic, scale, z, var, dmean, ds):
    plain.latent_dx(dz, mean, s, eps, analytic, scale / 2, z, var, dmean, ds)
"""


@pytest.fixture
def told(tmp_path, few_checks, capsys):
    """told(text of mine.py, settings of a case): the exit status, stdout and stderr of gradcheck --with it."""

    def told(text, settings=()):
        few_checks(checks.SMALL_CASES[0]._replace(**dict(settings)))
        mine = tmp_path / "mine.py"
        mine.write_text(text)
        status = main(["gradcheck", "--with", str(mine)])
        return status, *capsys.readouterr()

    return told


def solution(name, fault="pass"):
    """The text of a file whose function `name` does what the definition's does, and then what `fault` says."""
    arguments = re.sub(r"<function (\w+) at \w+>", r"plain.\1", str(inspect.signature(getattr(plain, name))))
    names = ", ".join(inspect.signature(getattr(plain, name)).parameters)
    return (f"from minivae.ops import plain\n\n\ndef {name}{arguments}:\n    result = plain.{name}({names})\n"
            f"    {fault}\n    return result\n")


@pytest.mark.parametrize("name", OPERATIONS)
def test_right_solutions_pass(name, told):
    status, out, err = told(solution(name), LEARNED | {"classes": 3})
    assert (status, err) == (0, "") and f"the definition, with {name} of" in out and "every gradient agrees" in out


@pytest.mark.parametrize("name, fault, row, settings", WRONG)
def test_wrong_solutions_fail_at_their_row(name, fault, row, settings, told):
    status, out, err = told(solution(name, fault), settings)
    assert (status, err) == (1, "")
    assert out.count("Look first at") == 1 and f"Look first at {row}, the lowest row that fails" in out
    assert "every gradient agrees" not in out


def test_another_model_is_told_from_a_wrong_gradient(told):
    """Finite differences agree, the fast operations do not."""
    status, out, _ = told(HALF_KL)
    assert status == 1 and "No gradient is refuted" in out and "Look first at" not in out


def test_a_constant_that_no_gradient_shows_is_seen_in_the_loss(told):
    status, out, _ = told(solution("latent", "kl += 1"))
    assert status == 1 and "look first at the loss itself" in out and out.count("FAILS") == 1


def test_an_operation_that_others_call_is_replaced_there_too(told):
    """conv_dx calls col2im by its name."""
    status, out, _ = told("def col2im(cols, g, dx):\n    dx[...] = 0\n")
    assert status == 1 and "FAILS" in out


@pytest.mark.parametrize("text, says", [
    ("def dense_dy(): pass", "defines dense_dy; the operations that gradcheck can take from it are "),
    (solution("adam"), "defines adam; the operations"),
    ("def _helper(): pass", "defines nothing; the operations"),
    ("def dense(:", "SyntaxError"),
    ("\nimport no_such_module", ", line 2: ModuleNotFoundError"),
    ("def add(total, term):\n    total += term[:, :-1]", ", line 2: ValueError"),
    ("def add(total): pass", "TypeError: add() takes 1 positional argument but 2 were given"),
    ("def im2col(x, g, buffers): pass", "mine.py: IndexError")])
def test_a_file_that_cannot_be_used_is_one_error_line(text, says, told):
    status, _, err = told(text)
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1 and says in err, err


def test_a_missing_file_is_one_error_line(capsys):
    assert main(["gradcheck", "--with", "no/such.py"]) == 2
    assert capsys.readouterr().err == "error: there is no file no/such.py; name one that docs/exercises.md describes\n"
