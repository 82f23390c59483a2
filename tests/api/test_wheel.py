"""The wheel, installed elsewhere and used in an empty folder."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
from jobs import CODE

from rlaif.app.command.words import with_judges

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    words = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(CODE)]
    subprocess.run([sys.executable, *words], check=True, capture_output=True, timeout=120)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """`installed("profile=smoke", cwd=...)`: the wheel's command `rlaif`, beside this environment's packages."""
    place = tmp_path_factory.mktemp("site")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(place),
    ]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True, timeout=120)

    def start(*words: str, cwd: Path, fresh: bool = False) -> subprocess.CompletedProcess[str]:
        own = {k: v for k, v in os.environ.items() if not k.startswith(("RLAIF_", "WANDB_"))}
        own |= {"PYTHONPATH": str(place), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
        script = place / "bin" / "rlaif"
        if not fresh:  # other packages are imported already
            return processes.run_command(words, cwd=cwd, env=own, script=script, site=place)
        return subprocess.run(
            [str(script), *words], cwd=cwd, env=own, capture_output=True, text=True, timeout=300
        )

    return start


def test_a_wheel_holds_what_the_checkout_configures(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"rlaif/{folder}/{file.relative_to(CODE / folder)}"
        for folder, pattern in (("conf", "**/*"), ("experiments", "*.yaml"), ("sweeps", "**/*.yaml"))
        for file in (CODE / folder).glob(pattern)
        if file.is_file()
    }
    assert len(expected) > 100 and not expected - held
    assert "rlaif/conf/judge/cot.yaml" in held, "conf/judge is a link to conf/labeler"
    assert {"rlaif/py.typed", "rlaif/report/page.html.j2", "rlaif/tracking/glossary.yaml"} <= held
    foreign = {name.split("/")[0] for name in held} - {"rlaif"}
    assert all(name.startswith("rlaif-") and name.endswith(".dist-info") for name in foreign)


def test_the_first_pages_commands_run_word_for_word_below_the_current_folder(installed, tmp_path) -> None:
    """As they stand, but for W&B's login, which is none here."""
    page = (CODE / "docs" / "index.md").read_text().split("## Five commands")[1]
    commands = [shlex.split(line) for line in page.split("```bash\n")[1].split("```")[0].splitlines()]
    assert len(commands) == 5 and all(words[0] == "rlaif" for words in commands)
    for words in commands:
        done = installed(*words[1:], cwd=tmp_path)
        assert done.returncode == 0, (words, done.stderr[-2000:])
        reports = [line for line in done.stdout.splitlines() if "report: " in line]
        assert "plan=true" in words or Path(reports[-1].split("report: ")[1]).is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    assert len(list(tmp_path.glob("outputs/runs/*/*"))) == 7, "one, none, one, four and one"


def test_the_installed_command_has_the_commands_help_and_sentences(installed, tmp_path) -> None:
    wrong = installed("stage=rm", "labeler=nobody", cwd=tmp_path, fresh=True)
    assert wrong.returncode == 2 and "labeler=nobody is not an option of labeler" in wrong.stderr
    shown = installed("--help", cwd=tmp_path)
    assert "rlaif stage=rm labeler=cot" in shown.stdout and "experiments=" in shown.stdout
    assert "label_vs_length" in shown.stdout and "python train.py" not in shown.stdout


def test_an_installed_command_takes_configuration_of_ones_own(installed, tmp_path) -> None:
    mine = tmp_path / "mine"
    (mine / "labeler").mkdir(parents=True)
    (mine / "experiments").mkdir()
    (mine / "labeler" / "longest.yaml").write_text(
        "# Prefers the longer response.\ndefaults: [scripted]\nname: longest\nscripted: {rule: longer}\n"
    )
    (mine / "experiments" / "own.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /stage: compare\nuntil: rm\n"
        "arms: {long: [labeler=longest], short: [labeler=scripted, labeler.scripted.rule=shorter]}\n"
    )
    words = ["--config-dir", str(mine), "experiments=own", "profile=smoke", "tracking=none"]
    done = installed(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "long" in done.stdout and "short" in done.stdout


def test_a_labeler_of_ones_own_judges_too(tmp_path) -> None:
    """`judge=NAME`, and the default, which is the labeler: by a copy, since conf/judge has no such file."""
    (tmp_path / "mine" / "labeler").mkdir(parents=True)
    (tmp_path / "mine" / "labeler" / "x.yaml").write_text("name: x\n")
    (tmp_path / "tmp").mkdir()
    for flag in (["--config-dir", str(tmp_path / "mine")], [f"--config-dir={tmp_path / 'mine'}"]):
        shutil.rmtree(tmp_path / "tmp" / "judge", ignore_errors=True)
        words = with_judges([*flag, "labeler=x"], tmp_path / "tmp")
        assert words[:-1] == [*flag, "labeler=x"] and words[-1].startswith("hydra.searchpath=[")
        assert (tmp_path / "tmp" / "judge" / "x.yaml").read_text() == "name: x\n"
    (tmp_path / "mine" / "judge").mkdir()
    assert with_judges(["--config-dir", str(tmp_path / "mine")], tmp_path) == [
        "--config-dir",
        str(tmp_path / "mine"),
    ]
    assert with_judges(["stage=rm"], tmp_path) == ["stage=rm"]
