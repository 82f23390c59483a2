"""What `rlaif --help` prints: the commands that people use, and every group with its options."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

from rlaif.app.home import OPTIONAL

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
  {program} stage=dashboard                  finished runs as a page, and as a W&B workspace and report
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
            shown.append(
                "judge=   as labeler=; without it, the task's choice (docs: reference) or the labeler"
            )
        elif [file.stem for file in options] == ["default"]:
            keys.append(f"{name}.KEY")
        elif options:
            width = max(20, *(len(file.stem) + 2 for file in options))
            lines = (f"    {file.stem:<{width}}{about(file)}".rstrip() for file in options)
            shown.append("\n".join([f"{name}=", *lines]))
    shown.append(f"{', '.join(keys)}: see conf/GROUP/default.yaml")
    return "\n\n".join(shown).replace("$", "$$")


def about(file: Path) -> str:
    """The first sentence of a configuration file's comment."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if "@package" not in line]
    comment = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))
    sentence = re.split(r"(?<!Dr\.)(?<!al\.)(?<=[.?])\s", comment)[0].rstrip(".")
    return sentence if len(sentence) <= _CUT else f"{sentence[:_CUT].rsplit(' ', 1)[0]} ..."
