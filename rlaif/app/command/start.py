"""Where the command starts: a Python that cannot run it is told so in one sentence, with what to run instead.

It asks before a job starts, not when one happens to import what is missing. Until then, only the standard library and
files that Python 3.8 can parse are imported.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

OLDEST = (3, 11)

# The distributions that pyproject.toml requires, by the module that each is imported as.
DEPENDENCIES = {
    "accelerate": "accelerate",
    "aiolimiter": "aiolimiter",
    "datasets": "datasets",
    "filelock": "filelock",
    "joblib": "joblib",
    "gguf": "gguf",
    "httpx": "httpx",
    "hydra": "hydra-core",
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "omegaconf": "omegaconf",
    "optuna": "optuna",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "pytorch_lightning": "pytorch-lightning",
    "rich": "rich",
    "rouge_score": "rouge-score",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "stamina": "stamina",
    "statsmodels": "statsmodels",
    "tokenizers": "tokenizers",
    "torch": "torch",
    "transformers": "transformers",
    "wandb": "wandb",
    "wandb_workspaces": "wandb-workspaces",
    "yaml": "pyyaml",
}

_ROOT = Path(__file__).resolve().parents[3]


def main() -> None:
    """Exits with 2, after one sentence on stderr, if this Python is too old or lacks a dependency."""
    if sys.version_info < OLDEST:
        _refuse(_too_old())
    missing = [name for name in DEPENDENCIES if not _installed(name)]
    if missing:
        _refuse(f"{_listed(missing)} not installed in this Python ({sys.executable}): {_remedy(missing)}")
    from rlaif.app.command.main import main as command

    command()


def _installed(name: str) -> bool:
    """Whether the package can be imported; a mere folder of its name in the current one cannot."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None


def _listed(names: Sequence[str], most: int = 3) -> str:
    """The first `most` names, how many more there are, and the verb."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more} {'is' if len(names) == 1 else 'are'}"


def _refuse(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


def _too_old() -> str:
    found = ".".join(map(str, sys.version_info[:3]))
    old = f"rlaif needs Python {'.'.join(map(str, OLDEST))} or newer, and {sys.executable} is {found}: "
    if not (_ROOT / "train.py").is_file():
        return f"{old}install it into a newer one"
    if _inside():
        return f"{old}run `{_make('clean-venv')}`, then `{_make('setup')} PYTHON=python3.11`"
    return old + _instead(f"{_make('setup')} PYTHON=python3.11")


def _remedy(missing: Sequence[str]) -> str:
    """What to run so that the modules `missing` are there."""
    pip = f"{shlex.quote(sys.executable)} -m pip install"
    if not (_ROOT / "train.py").is_file():
        return f"run `{pip} {' '.join(DEPENDENCIES[name] for name in missing)}`"
    if _inside():
        constraints, root = shlex.quote(_shown(_ROOT / "constraints.txt")), shlex.quote(_shown(_ROOT))
        return f"run `{pip} --constraint {constraints} --editable {root}`"
    return _instead(_make("setup"))


def _instead(setup: str) -> str:
    """The same command in the checkout's environment, which `setup` makes."""
    python, activate = (
        shlex.quote(_shown(_ROOT / ".venv" / "bin" / name)) for name in ("python", "activate")
    )
    train = shlex.quote(_shown(_ROOT / "train.py"))
    again = " ".join([python, train, *map(shlex.quote, sys.argv[1:])])
    if (_ROOT / ".venv" / "bin" / "python").exists():
        return f"run `{again}`, or first activate the environment: `source {activate}`"
    return f"run `{setup}`, then `{again}`"


def _inside() -> bool:
    """Whether this Python is the checkout's environment."""
    return Path(sys.prefix).resolve() == (_ROOT / ".venv").resolve()


def _make(target: str) -> str:
    here = Path.cwd() == _ROOT
    return f"make {target}" if here else f"make -C {shlex.quote(str(_ROOT))} {target}"


def _shown(path: Path) -> str:
    """`path` as one types it in the current folder."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
