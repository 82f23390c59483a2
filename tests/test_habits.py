"""What a contributor's tools read: hooks, hosted CI, issue templates and the changelog agree with the repository."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from typing import Any

import yaml
from jobs import CODE

import rlaif

GITHUB = CODE / ".github"


def _yaml(path: str) -> Any:
    return yaml.safe_load((CODE / path).read_text(encoding="utf-8"))


def _lint_commands() -> list[str]:
    """The commands of `make lint`, as the shell gets them."""
    makefile = (CODE / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]


def test_hooks_are_the_commands_of_make_lint() -> None:
    (repo,) = _yaml(".pre-commit-config.yaml")["repos"]
    assert repo["repo"] == "local", "a hook from elsewhere needs the network and has another version"
    assert [hook["entry"] for hook in repo["hooks"]] == _lint_commands()
    assert all(hook["language"] == "system" and not hook["pass_filenames"] for hook in repo["hooks"])


def test_pre_commit_reads_its_configuration() -> None:
    file = str(CODE / ".pre-commit-config.yaml")
    line = [sys.executable, "-m", "pre_commit", "validate-config", file]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hosted_ci_runs_make_test_and_may_only_read() -> None:
    workflow = _yaml(".github/workflows/ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    assert job["timeout-minutes"] <= 90 and "permissions" not in job
    (run,) = (step["run"] for step in job["steps"] if "run" in step)
    assert re.fullmatch(r'make test TORCH_ARGS="[^"]+"', run)
    project = tomllib.loads((CODE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = job["strategy"]["matrix"]["python-version"]
    assert project["requires-python"] == f">={versions[0]}" and all(isinstance(one, str) for one in versions)


def test_issue_templates_are_forms_and_a_bug_comes_with_its_command() -> None:
    for file in sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")):
        form = _yaml(str(file.relative_to(CODE)))
        assert form["name"] and form["description"] and form["body"], file.name
        ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
        assert len(ids) == len(set(ids)) and all(field["attributes"]["label"] for field in form["body"])
    bug = {field["id"]: field for field in _yaml(".github/ISSUE_TEMPLATE/bug_report.yml")["body"]}
    required = {name for name, field in bug.items() if field.get("validations", {}).get("required")}
    assert {"command", "printed", "doctor", "version"} <= required
    assert "stage=doctor" in bug["doctor"]["attributes"]["description"]


def test_the_changelog_begins_with_this_version() -> None:
    text = (CODE / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    versions = [re.fullmatch(r"(\d+\.\d+\.\d+) - (unreleased|\d{4}-\d\d-\d\d)", line) for line in headings]
    assert all(versions) and versions[0][1] == rlaif.__version__
    numbers = [tuple(map(int, version[1].split("."))) for version in versions]
    assert numbers == sorted(set(numbers), reverse=True), "newest first"
    assert all(version[2] != "unreleased" for version in versions[1:])
    sections = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert sections <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_no_folder_has_more_than_ten_modules() -> None:
    """What a reader can take in at once; a larger room gets a folder of its own."""
    folders = [path for path in (CODE / "rlaif").rglob("*") if path.is_dir()]
    sizes = {
        folder: len([file for file in folder.glob("*.py") if file.stem != "__init__"]) for folder in folders
    }
    assert len(folders) > 20 and {folder: size for folder, size in sizes.items() if size > 10} == {}
