"""Keeps keys and passwords out of everything that a run writes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[redacted]"
# A key's last word decides: `hf_token` is a secret, `max_new_tokens` and `api_key_env` are not.
_SECRET_KEY = re.compile(
    r"(?:^|[_\-. ])(?:api_?key|access_?key|private_?key|token|secrets?|passwords?|passwd|credentials?|"
    r"authorization)$",
    re.IGNORECASE,
)
_TOKENIZER_KEY = re.compile(
    r"(?:^|_)(?:pad|eos|bos|unk|sep|cls|mask|stop|choice|special|end|start|first|last|"
    r"next|new|per|each|by|usd_per)_token$",
    re.IGNORECASE,
)
_CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_ASSIGNMENT = re.compile(
    r"(?P<key>[\w.\-]+)(?P<sign>['\"]?\s*[:=]\s*)(?P<value>\"[^\"]*\"|'[^']*'|[^,{}\s]+)"
)
_URL_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")
_SHORTEST_SECRET = 8


def is_secret_key(key: str) -> bool:
    """Whether a configuration key or environment variable of this name holds a secret."""
    words = _CAMEL_CASE.sub("_", key)
    return bool(_SECRET_KEY.search(words)) and not _TOKENIZER_KEY.search(words)


def redact(value: Any) -> Any:
    """A copy of the nested plain `value` without secrets.

    It hides values under secret keys (numbers and nested values too; None stays), logins in URLs, and, wherever it
    occurs, the value of any environment variable with a secret's name.
    """
    return _redact(value, _environment_secrets())


def redact_assignments(text: str) -> str:
    """`text` (a command-line override) without the values that it gives to secret keys."""

    def hidden(found: re.Match[str]) -> str:
        return f"{found['key']}{found['sign']}{REDACTED}" if is_secret_key(found["key"]) else found.group()

    return str(redact(_ASSIGNMENT.sub(hidden, text)))


def _redact(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            key: REDACTED if item is not None and is_secret_key(str(key)) else _redact(item, secrets)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_redact(item, secrets) for item in value]
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, REDACTED)
        return _URL_LOGIN.sub(f"{REDACTED}@", value)
    return value


def _environment_secrets() -> list[str]:
    found = {value for name, value in os.environ.items() if is_secret_key(name)}
    return sorted((value for value in found if len(value) >= _SHORTEST_SECRET), key=len, reverse=True)
