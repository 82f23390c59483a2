"""The exception for a user's mistakes."""


class UserError(Exception):
    """Bad input or an impossible request.

    The message is one sentence that names the file, row and column or the config key, and says what to write
    instead. `train.py` prints it without a traceback and exits with code 2.
    """
