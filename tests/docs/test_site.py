"""The site builds without a warning, and its reference holds what the program has, no more and no less."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import processes
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
    "claim",
    "dashboard.sections",
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


@pytest.fixture(scope="module")
def composed() -> dict[str, dict[str, Any]]:
    """What Hydra composes for each option of each group, by `GROUP=OPTION`; "" is what no word changes."""
    groups = {folder.name for folder in CONF.iterdir() if folder.is_dir()} - {"hydra", "templates", "judge"}
    options = [
        f"{group}={file.stem}" for group in sorted(groups) for file in (CONF / group).glob("[!_]*.yaml")
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = {word: compose("config", overrides=[word] if word else []) for word in ["", *options]}
    return {word: OmegaConf.to_container(cfg, resolve=False) for word, cfg in found.items()}


def test_the_reference_has_every_key_and_no_other(site: Path, composed: dict[str, Any]) -> None:
    named = {name for name in _ids(site, "configuration") if "=" not in name}
    expected = {key for values in composed.values() for key in _leaves(values)} - {
        "stage"
    }  # a group of its own options
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
    alone = {file.parent for file in files if file.stem == "default"} - {
        file.parent for file in files if file.stem != "default"
    }
    expected = {f"{file.parent.name}={file.stem}" for file in files if file.parent not in alone}
    assert named == expected


def _rows(site: Path, page: str) -> dict[str, list[str]]:
    """The cells of each row that names something, as HTML."""
    text = (site / "reference" / page / "index.html").read_text()
    cells = [
        re.findall(r"<td>(.*?)</td>", row, re.DOTALL)
        for row in re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    ]
    named = [(re.search(r'<a id="([^"]+)">', row[0]), row) for row in cells if row]
    return {found[1]: row for found, row in named if found}


def _text(cell: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", cell)).strip()


def test_every_key_says_what_it_means(site: Path) -> None:
    rows = {name: row for name, row in _rows(site, "configuration").items() if "=" not in name}
    assert len(rows) > 250 and all(len(row) == 4 for row in rows.values())
    assert [name for name, row in rows.items() if not _text(row[3]) or not _text(row[1])] == []


def test_a_meaning_is_the_files_comment_to_the_letter(site: Path) -> None:
    """What Markdown or HTML would swallow, a value's case, and a comment above several keys."""
    rows = {name: _text(row[3]) for name, row in _rows(site, "configuration").items() if "=" not in name}
    assert "conf/templates/<task>/" in rows["labeler.preamble"]
    assert "lr * value_lr_factor * |hidden|_1" in rows["rl.value_lr_factor"]
    assert rows["curve"].startswith("{x, y, by}: ") and "|p - 0.5| below" in rows["eval.tie_margin"]
    assert "auto | full | top:K" in rows["model.trainable"]
    text = _text((site / "reference" / "configuration" / "index.html").read_text())
    assert "Alarms warn" in text, "the comment of a group within a group"


def test_a_default_is_what_a_job_gets(site: Path, composed: dict[str, Any]) -> None:
    """Of every key: the default, and what each option of its group changes it to."""
    checked = 0
    for key, row in _rows(site, "configuration").items():
        group = key.split(".")[0]
        if "=" in key or {group, key} & OPEN or group == "judge":
            continue
        cells = re.findall(r"<code>(.*?)</code>(?:: ([\w, ]+))?", row[2].replace("\n", " "))
        shown = {
            name: html.unescape(code) for code, names in cells for name in (names or "default").split(", ")
        }
        for word, values in composed.items():
            value, name = _at(values, key), word.partition("=")[2]
            if (not word or word.startswith(f"{group}=")) and value is not _at and value != name:
                assert _written(value) == shown.get(name, shown.get("default")), (word, key)
                checked += 1
    assert checked > 800


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        if part not in values:
            return _at
        values = values[part]
    return values


def _written(value: Any) -> str:
    """As a command has it."""
    if isinstance(value, str):
        return value.replace("\n", "\\n") if value.strip() else f'"{value}"'
    if isinstance(value, float):
        return f"{value:g}"
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    loads = re.compile(r'<(?:script|img|iframe|link)\b[^>]*(?:src|href)="(?:https?:)?//[^"]+"')
    found = {str(page): loads.findall(page.read_text()) for page in site.rglob("*.html")}
    assert found and not any(found.values()), found


def test_the_reference_has_every_metric_and_no_other(site: Path) -> None:
    registry = yaml.safe_load((CODE / "rlaif" / "tracking" / "glossary.yaml").read_text())
    assert _ids(site, "metrics") == set(registry["metrics"])


def test_the_reference_has_what_the_help_prints(site: Path) -> None:
    shown = processes.run_command(["--help"], cwd=CODE, env=os.environ).stdout
    page = html.unescape(re.sub(r"<[^>]+>", "", (site / "reference" / "cli" / "index.html").read_text()))
    words = [line.strip().replace("python train.py", "rlaif") for line in shown.splitlines() if line.strip()]
    assert len(words) > 60 and [line for line in words if line not in page] == []


def test_the_api_page_has_what_the_package_exports(site: Path) -> None:
    import rlaif

    text = (site / "reference" / "api" / "index.html").read_text()
    shown = {name.rsplit(".", 1)[1] for name in re.findall(r'id="(rlaif\.[\w.]+)"', text)}
    assert {name for name in rlaif.__all__ if not name.startswith("_")} <= shown
    for record in (rlaif.RunRecord, rlaif.Pair, rlaif.Preference):
        home = f"{record.__module__}.{record.__name__}"
        assert [f.name for f in fields(record) if f'id="{home}.{f.name}"' not in text] == []


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
