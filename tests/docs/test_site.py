"""The site builds without a warning, and its reference holds what the program has, no more and no less."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from jobs import CODE
from omegaconf import OmegaConf
from site_blocks import DOCS, PAGES

CONF = CODE / "conf"
OPEN = {
    "prices",
    "arms",
    "grid",
    "repeat",
    "curve",
    "diagnose",
    "controls",
    "compare",
}  # names of the user's own
GIVEN = [
    "task=custom",
    "model=hub",
    "backend=openai",
    "reward=hub",
]  # have settings that others of their group lack


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(CODE)}
    done = subprocess.run(line, cwd=CODE, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr[-3000:]
    return folder


def _ids(site: Path, page: str) -> set[str]:
    """What a page's tables name."""
    return set(re.findall(r'<td><a id="([^"]+)">', (site / "reference" / page / "index.html").read_text()))


def _leaves(values: object, place: str = "") -> set[str]:
    if not isinstance(values, dict) or place in OPEN or not values:
        return {place}
    return {leaf for key, value in values.items() for leaf in _leaves(value, f"{place}.{key}".lstrip("."))}


def _composed_keys() -> set[str]:
    """Every key that some command has, as Hydra composes it."""
    keys: set[str] = set()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        groups = {folder.name for folder in CONF.iterdir() if folder.is_dir()} - {"hydra", "templates"}
        for group in sorted(groups):
            for file in (CONF / group).glob("[!_]*.yaml"):
                values = OmegaConf.to_container(
                    compose("config", overrides=[f"{group}={file.stem}"]), resolve=False
                )
                keys |= _leaves(values)
    return keys


def test_the_reference_has_every_key_and_no_other(site: Path) -> None:
    named = {name for name in _ids(site, "configuration") if "=" not in name}
    expected = _composed_keys() - {"stage"}  # a group of its own options
    assert named == expected and len(named) > 250


def test_the_reference_has_every_option_and_no_other(site: Path) -> None:
    named = {name for name in _ids(site, "configuration") if "=" in name}
    folders = [
        path for path in CONF.iterdir() if path.is_dir() and path.name not in ("hydra", "templates", "judge")
    ]
    files = [
        file
        for folder in (*folders, CODE / "experiments", CODE / "sweeps")
        for file in folder.glob("[!_]*.yaml")
    ]
    expected = {f"{file.parent.name}={file.stem}" for file in files if file.stem != "default"}
    assert named == expected


def test_every_key_says_what_it_means(site: Path) -> None:
    text = (site / "reference" / "configuration" / "index.html").read_text()
    rows = re.findall(r'<tr>\s*<td><a id="([^"=]+)">.*?</tr>', text, re.DOTALL)
    cells = [
        re.findall(r"<td>(.*?)</td>", row, re.DOTALL)
        for row in re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    ]
    meanings = {re.search(r'id="([^"]+)"', row[0])[1]: row[3] for row in cells if len(row) == 4}
    assert set(rows) == set(meanings)
    assert [key for key, meaning in meanings.items() if len(meaning.strip()) < 5] == []


def test_a_default_is_what_a_job_gets(site: Path) -> None:
    """A sample of keys, from the page's cell to the composed value."""
    text = (site / "reference" / "configuration" / "index.html").read_text()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config")
    for key in (
        "rl.lr",
        "rl.beta",
        "rm.labels",
        "labeler.readout.kind",
        "labeler.order",
        "sft.num_rows",
        "task.suffix",
    ):
        row = re.search(rf'<a id="{re.escape(key)}">.*?</tr>', text, re.DOTALL)[0]
        shown = html.unescape(re.findall(r"<td>(.*?)</td>", row, re.DOTALL)[1])
        value = OmegaConf.select(cfg, key)
        written = shown.removeprefix("<code>").removesuffix("</code>")
        assert str(yaml.safe_load(written) if isinstance(value, int | float) else written) == str(
            value
        ).replace("\n", "\\n"), key


def test_the_reference_has_every_metric_and_no_other(site: Path) -> None:
    registry = yaml.safe_load((CODE / "rlaif" / "tracking" / "glossary.yaml").read_text())
    assert _ids(site, "metrics") == set(registry["metrics"])


def test_the_reference_has_what_the_help_prints(site: Path) -> None:
    line = [sys.executable, str(CODE / "train.py"), "--help"]
    shown = subprocess.run(line, capture_output=True, text=True, check=True, cwd=CODE, timeout=120).stdout
    page = html.unescape(re.sub(r"<[^>]+>", "", (site / "reference" / "cli" / "index.html").read_text()))
    words = [line.strip().replace("python train.py", "rlaif") for line in shown.splitlines() if line.strip()]
    assert len(words) > 60 and [line for line in words if line not in page] == []


def test_the_api_page_has_what_the_package_exports(site: Path) -> None:
    import rlaif

    text = (site / "reference" / "api" / "index.html").read_text()
    shown = {name.rsplit(".", 1)[1] for name in re.findall(r'id="(rlaif\.[\w.]+)"', text)}
    assert {name for name in rlaif.__all__ if not name.startswith("_")} <= shown


def test_what_the_pages_point_at_is_there(site: Path) -> None:
    """Modules and functions that prose and pseudocode name."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for path in re.findall(r"`(rlaif/[\w/.]+)`", text):
            assert (CODE / path).exists(), f"{page.name}: {path}"
        for path, name in re.findall(r"# ([\w/]+\.py): (\w+)", text):
            assert f"def {name}(" in (CODE / "rlaif" / path).read_text(), f"{page.name}: {path}: {name}"
        for name in re.findall(r"`rlaif\.ops\.(\w+)`", text):
            assert hasattr(__import__("rlaif.ops", fromlist=["ops"]), name), name
    assert (DOCS / "report.png").stat().st_size > 10_000
