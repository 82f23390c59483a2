"""The command line: its help, its words before Hydra reads them, and one sentence for what is wrong with them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from itertools import pairwise, takewhile
from pathlib import Path

from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue

from rlaif.app.home import CODE, CONF
from rlaif.errors import UserError
from rlaif.options.read import missing_value, unknown_key

OPTIONAL = ("experiments", "sweeps")  # groups beside conf/, of which a job may have none

_NO_OVERRIDE = re.compile(r"Could not override '([^']+)'")
_AMBIGUOUS = re.compile(r"Ambiguous value for argument '([^']+)'")
_FULL_KEY = re.compile(r"full_key: (\S+)")
_NOISE = re.compile(
    r"full_key:|object_type=|See https?:|Config search path:|provider=|Set the environment variable"
)


def one_sentence(error: BaseException) -> str:
    """`error` on one line; a configuration error says what there is."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _unknown_option(str(error.missing_cfg_file), error.options or [])
    if isinstance(error, MissingMandatoryValue):
        return missing_value([found[1]] if (found := _FULL_KEY.search(text)) else [])
    if isinstance(error, ConfigCompositionException) and (found := _NO_OVERRIDE.search(text)):
        return unknown_key(found[1])
    if isinstance(error, ConfigCompositionException) and (found := _AMBIGUOUS.search(text)):
        return f"{found[1]} gives several values: add -m to run a job for each, or write KEY=[A,B] for a list"
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override!r} is not an override: write KEY=VALUE (with quotes around special characters)"
        )
    lines = [line.strip() for line in text.splitlines()]
    return " ".join(line for line in lines if line and not _NOISE.search(line)) or type(error).__name__


def refuse_null(words: Sequence[str]) -> None:
    """Raises UserError for GROUP=null, which Hydra answers with a traceback."""
    for group, _, value in (word.partition("=") for word in words):
        if "null" not in value.lower().split(","):
            continue
        if group in OPTIONAL:
            raise UserError(f"{group}=null: leave {group} out to have none")
        if group.isidentifier() and (CONF / group).is_dir():
            raise UserError(
                _unknown_option(f"{group}/null", sorted(f.stem for f in (CONF / group).glob("*.yaml")))
            )


def _unknown_option(missing: str, options: Iterable[str]) -> str:
    group, _, name = missing.rpartition("/")
    known = [option for option in options if not option.startswith("_")]
    what = f"one of {', '.join(known)}" if known else f"the name of a file in {group}/ (without .yaml)"
    return f"{group}={name} is not an option of {group}: write {what}"


def with_judges(words: Sequence[str], folder: Path) -> list[str]:
    """The words, for a `--config-dir` with labelers of the user's own: each judges too, by a copy below `folder`."""
    options = dict(pairwise(words))
    own = options.get("--config-dir") or options.get("-cd")
    own = own or next((word.partition("=")[2] for word in words if word.startswith("--config-dir=")), None)
    if own is None or not (Path(own) / "labeler").is_dir() or (Path(own) / "judge").exists():
        return list(words)
    shutil.copytree(Path(own) / "labeler", folder / "judge")
    return [*words, f"hydra.searchpath=['file://{CODE}','file://{folder}']"]


# At the start of a value, or of an item of a list or sweep; Hydra's grammar has no such value without quotes.
_HOME = re.compile(r"(?<=[=,\[])~(?=/|$|[,\]])")


def arranged(words: Sequence[str]) -> list[str]:
    """The words as Hydra takes them: `-m` first, wherever it was written, and `~` expanded as the shell does."""
    flags = ("-m", "--multirun")
    return sorted(map(expand_home, words), key=lambda word: word not in flags)


def expand_home(word: str) -> str:
    """`key=~/file` as the shell would have it, were it the word's beginning; quoted words stay as they are."""
    if "'" in word or '"' in word:
        return word
    return _HOME.sub(lambda _: os.path.expanduser("~"), word)


_HELP = """\
Which AI-feedback recipe gives the better policy, and is the difference real?

  {program}                                  the whole path on the embedded model, then a report
  {program} stage=rm labeler=cot             one stage; missing inputs are built first, existing ones reused
  {program} plan=true                        what would be reused and built, and what it would cost
  {program} profile=smoke                    every step within seconds, on a tiny random model
  {program} task=custom task.path=FILE       your own prompts, references or preferences
  {program} model=hub model.name=ORG/NAME    another base model, from the hub or a folder
  {program} backend=openai backend.base_url=http://HOST/v1 backend.name=NAME    a labeler behind a server
  {program} -m labeler=base,cot seed=0,1     a job for each combination, and one table
  {program} experiments=NAME                 arms that share what they have in common, tested against each other

Write GROUP=OPTION for an option of a group, KEY=VALUE for a single setting (conf/ has all of them, with comments).
"""
_CUT = 96


def help_text(root: Path, program: str) -> str:
    """What `--help` prints: commands of `program`, then each group of `root` with its options and a line on each."""
    groups = {path.name: path for path in sorted((root / "conf").iterdir()) if path.is_dir()}
    groups |= {name: root / name for name in OPTIONAL}
    shown, keys = [_HELP.format(program=program).rstrip()], []
    for name, folder in groups.items():
        options = [file for file in sorted(folder.glob("*.yaml")) if not file.stem.startswith("_")]
        if name == "judge":
            shown.append("judge=   as labeler=; without it, the labeler judges")
        elif [file.stem for file in options] == ["default"]:
            keys.append(f"{name}.KEY")
        elif options:
            lines = (f"    {file.stem:<20}{about(file)}".rstrip() for file in options)
            shown.append("\n".join([f"{name}=", *lines]))
    shown.append(f"{', '.join(keys)}: see conf/GROUP/default.yaml")
    return "\n\n".join(shown).replace("$", "$$")


def about(file: Path) -> str:
    """The first sentence of a configuration file's comment."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if "@package" not in line]
    comment = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))
    sentence = re.split(r"(?<!Dr\.)(?<!al\.)(?<=[.?])\s", comment)[0].rstrip(".")
    return sentence if len(sentence) <= _CUT else f"{sentence[:_CUT].rsplit(' ', 1)[0]} ..."
