"""What a user can fix, and the command that does it."""

import difflib
import shlex

# the options of this process's command that a command which goes on from it needs too
same_device = []


class UserError(Exception):
    """A mistake of the user's or of the machine's: one line that says what is wrong and what to do.

    run.py prints it as `error: ...` and exits 2.
    """


def run_command(*words):
    """The run.py command of these words on the device in use, quoted so that it can be pasted into a shell."""
    return shlex.join(["python", "run.py", *map(str, words), *same_device])


def did_you_mean(word, known):
    """"did you mean X? " if a known word is close to this one, else nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    return f"did you mean {close[0]}? " if close else ""
