"""python run.py gradcheck --with mine.py: a reader's operations in place of the definition's; see docs/exercises.md."""

import importlib.util
import inspect
import runpy
import traceback
from pathlib import Path

from minivae import checks
from minivae.errors import UserError
from minivae.ops import plain

# no gradient passes through these
NO_GRADIENT = {"adam", "adam_rate", "dequantize", "gather", "moving_average", "normal", "record", "take_labels"}
OPERATIONS = [name for name, f in vars(plain).items()
              if inspect.isfunction(f) and f.__module__.startswith(plain.__name__)  # plain_sigmas' too
              and not name.startswith("_") and name not in NO_GRADIENT]


def run(fast, path):
    """checks.run on the definition with the functions of the file `path`. UserError, with its line, if they raise."""
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}; name one that docs/exercises.md describes")
    try:
        return checks.run(fast, definition_with(path))
    except UserError:
        raise
    except Exception as e:  # whatever it is, the reader's file has caused it
        lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == path]
        where = f"{path}, line {lines[-1]}" if lines else path
        raise UserError(f"{where}: {type(e).__name__}: {e}") from e


def definition_with(path):
    """A copy of plain.py with the functions that the file defines in place of the operations of the same names.

    Operations that call each other find the reader's too, since the copy has globals of its own. A function whose name
    starts with an underscore is the reader's helper. UserError if another is not one of OPERATIONS.
    """
    mine = {name: f for name, f in runpy.run_path(path, run_name=path).items()
            if getattr(f, "__module__", None) == path and callable(f) and not name.startswith("_")}
    unknown = ", ".join(name for name in mine if name not in OPERATIONS)
    if unknown or not mine:
        raise UserError(f"{path} defines {unknown or 'nothing'}; the operations that gradcheck can take from it are "
                        f"{', '.join(OPERATIONS)} (and helpers whose names start with _)")
    spec = importlib.util.find_spec(plain.__name__)
    definition = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(definition)
    vars(definition).update(mine)
    print(f"the definition, with {', '.join(mine)} of {path}")
    return definition
