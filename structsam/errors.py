"""The one exception for mistakes a user can mend. Imports nothing, so every layer may use it."""


class UserError(Exception):
    """What is wrong, and how to fix it, in one line.

    The command line prints the message without a traceback and exits with 2; anything that is
    not a `UserError` is a defect of ours and keeps its traceback.
    """
