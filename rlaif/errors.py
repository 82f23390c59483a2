"""The one exception that a user's mistake raises."""


class UserError(Exception):
    """Bad input or an impossible request.

    The message is one sentence that names the file, row and column or the config key,
    and says what to write instead. `train.py` prints it without a traceback and exits with code 2.
    """
