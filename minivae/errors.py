"""What a user can fix, and the command that does it."""

import shlex


class UserError(Exception):
    """A mistake of the user's or of the machine's: one line that says what is wrong and what to do.

    run.py prints it as `error: ...` and exits 2.
    """


def run_command(*words):
    """The run.py command of these words, quoted so that it can be pasted into a shell."""
    return shlex.join(["python", "run.py", *map(str, words)])
