"""What a user can mend."""


class UserError(Exception):
    """A mistake of the user's or of the machine's: one line that says what is wrong and what to do.

    run.py prints it as `error: ...` and exits 2.
    """
