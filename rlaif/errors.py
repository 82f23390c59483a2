"""The exceptions that end a job: a user's mistake, and a search's decision to go no further."""


class UserError(Exception):
    """Bad input or an impossible request.

    The message is one sentence that names the file, row and column or the config key, and says what to write
    instead. `train.py` prints it without a traceback and exits with code 2.
    """


class Pruned(Exception):
    """A search stops a job whose history promises nothing. The run is neither finished nor failed."""
