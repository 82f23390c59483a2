"""train.py in a Python that cannot run it: one sentence that says what to run, and no traceback."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from jobs import CODE

from rlaif.app.command.start import DEPENDENCIES, OLDEST

# What runs before the first look at the interpreter.
FIRST = (
    "train.py",
    "rlaif/__init__.py",
    "rlaif/version.py",
    "rlaif/app/__init__.py",
    "rlaif/app/command/__init__.py",
    "rlaif/app/command/start.py",
)
MAIN = "rlaif/app/command/main.py"
Sentence = Callable[..., str]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout without an environment, as far as a Python without dependencies reads it."""
    for file in (*FIRST, MAIN):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CODE / file, tmp_path / file)
    return tmp_path


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with its standard library alone."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    return folder / "bin" / "python"


def _run(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, words)), cwd=cwd, capture_output=True, text=True, timeout=120)


def _sentence(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2 and done.stdout == "", done.stderr
    (line,) = done.stderr.splitlines()
    return line


def _pretending(change: str, train: Path, *words: str) -> list[str]:
    """This Python as `change` leaves it, running `train`."""
    code = f"import runpy, sys; {change}; sys.argv = {[str(train), *words]}; sys.path.insert(0, {str(train.parent)!r});"
    return [sys.executable, "-c", f"{code} runpy.run_path({str(train)!r}, run_name='__main__')"]


def test_without_an_environment_the_sentence_says_how_to_make_it(bare, checkout) -> None:
    said = _sentence(_run(bare, "train.py", "stage=rm", "a=[b c]", cwd=checkout))
    remedy = "run `make setup`, then `.venv/bin/python train.py stage=rm 'a=[b c]'`"
    missing = f"accelerate, aiolimiter, datasets and {len(DEPENDENCIES) - 3} more are not installed"
    assert said == f"error: {missing} in this Python ({bare}): {remedy}"


def test_an_environment_that_is_there_is_named_also_from_another_folder(
    bare, checkout, tmp_path_factory
) -> None:
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    said = _sentence(_run(bare, "train.py", "stage=rm", cwd=checkout))
    assert "run `.venv/bin/python train.py stage=rm`" in said and "`source .venv/bin/activate`" in said
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    said = _sentence(_run(bare, checkout / "train.py", cwd=elsewhere))
    assert (
        f"run `{python} {checkout / 'train.py'}`" in said and f"`source {python.parent / 'activate'}`" in said
    )


def test_an_environment_that_lacks_a_dependency_is_completed(checkout) -> None:
    venv.create(checkout / ".venv", symlinks=True)
    said = _sentence(_run(".venv/bin/python", "train.py", cwd=checkout))
    assert "-m pip install --constraint constraints.txt --editable .`" in said and "make" not in said


def test_an_installed_command_names_the_distribution(bare, checkout) -> None:
    (checkout / "train.py").unlink()
    said = _sentence(_run(bare, "-c", "from rlaif.app.command.start import main; main()", cwd=checkout))
    assert f"run `{bare} -m pip install accelerate " in said and " hydra-core " in said


@pytest.mark.parametrize("name", ["gguf", "hydra", "torch"])
def test_a_single_dependency_is_missed_before_the_job_starts(name) -> None:
    change = f"sys.modules[{name!r}] = None"
    said = _sentence(_run(*_pretending(change, CODE / "train.py", "--help")))
    assert said.startswith(f"error: {name} is not installed in this Python ({sys.executable}): run `")


def test_a_folder_of_a_packages_name_is_not_the_package(bare, checkout) -> None:
    for module in set(DEPENDENCIES) - {"wandb"}:
        (checkout / f"{module}.py").touch()
    (checkout / "wandb").mkdir()  # as W&B leaves one where it runs
    assert _sentence(_run(bare, "train.py", cwd=checkout)).startswith("error: wandb is not installed")


def test_an_old_python_is_told_so_before_anything_is_imported(bare, checkout) -> None:
    change = "sys.version_info = (3, 10, 4, 'final', 0)"
    said = _sentence(_run(*_pretending(change, checkout / "train.py"), cwd=checkout))
    assert f"rlaif needs Python 3.11 or newer, and {sys.executable} is 3.10.4" in said
    assert said.endswith("run `make setup PYTHON=python3.11`, then `.venv/bin/python train.py`")


@pytest.mark.parametrize("file", FIRST)
def test_python_3_8_parses_what_runs_before_the_sentence(file) -> None:
    ast.parse((CODE / file).read_text(encoding="utf-8"), feature_version=(3, 8))


@pytest.mark.parametrize("line", ["import rlaif.nothing", "import hydar", "import hydra.nothing"])
def test_a_mistake_of_our_own_is_a_traceback(checkout, line) -> None:
    (checkout / MAIN).write_text(f"{line}\n", encoding="utf-8")
    done = _run(sys.executable, "train.py", cwd=checkout)
    assert done.returncode == 1 and "Traceback" in done.stderr and "is not installed" not in done.stderr


def test_every_dependency_is_known_by_the_name_of_its_module() -> None:
    project = tomllib.loads((CODE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {re.split(r"[><=]", line)[0] for line in project["dependencies"]}
    assert set(DEPENDENCIES.values()) == required
    providers = packages_distributions()
    for module, distribution in DEPENDENCIES.items():
        assert distribution in {name.lower().replace("_", "-") for name in providers[module]}
    assert project["requires-python"] == f">={OLDEST[0]}.{OLDEST[1]}"
