"""The words of the command line, before Hydra reads them."""

from __future__ import annotations

import os
import re

# At the start of a value, or of an item of a list or sweep; Hydra's grammar has no such value without quotes.
_HOME = re.compile(r"(?<=[=,\[])~(?=/|$|[,\]])")


def expand_home(word: str) -> str:
    """`key=~/file` as the shell would have it, were it the word's beginning; quoted words stay as they are."""
    if "'" in word or '"' in word:
        return word
    return _HOME.sub(lambda _: os.path.expanduser("~"), word)
