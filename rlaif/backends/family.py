"""The family of a labeler's or judge's model, since a model favours what its relatives favour."""

from __future__ import annotations

import re

_ROUTE = re.compile(r"^(?:ft:|[a-z]+\.(?=[a-z]))+")  # ft:gpt-4o, us.anthropic.claude-3
_LETTERS = re.compile(r"[a-z]+")
# Names whose first letters are not those of their family: published relatives only.
_RELATIVES = {
    "chatgpt": "gpt",
    "davinci": "gpt",
    "o": "gpt",  # o1, o3-mini
    "text": "gpt",  # text-davinci-003
    "codellama": "llama",
    "meta": "llama",  # Meta-Llama-3-8B
    "tinyllama": "llama",
    "codestral": "mistral",
    "magistral": "mistral",
    "ministral": "mistral",
    "mixtral": "mistral",
    "qwq": "qwen",
    "codegemma": "gemma",
}


def family(engine: str, name: str | None) -> str | None:
    """The family of the model `name` behind `engine`, in lower case; None if nothing is known of it.

    A model is named by a provider, a hub or a folder: the organisation and the route are taken off, and the letters
    before the first digit or sign are the family (`Qwen/Qwen2.5-7B`: qwen). A rule is a family of its own
    (`rule longer`), and so are sentence encoders, which are asked no question.
    """
    if engine == "encoder":
        return "encoder"
    if not name:
        return None
    if engine == "scripted":
        return f"rule {name}"
    own = _ROUTE.sub("", model_name(name))
    found = _LETTERS.match(own)
    return _RELATIVES.get(found[0], found[0]) if found else own


def model_name(name: str) -> str:
    """A model's name in lower case, without its organisation or folder."""
    return name.rstrip("/").rsplit("/", 1)[-1].lower()
