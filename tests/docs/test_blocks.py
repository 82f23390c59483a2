"""Every code block of README.md and the site runs, at smoke size; the notebook too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import local_server
import nbformat
import processes
import pytest
from jobs import CODE, start_job
from local_server import LocalServer
from model_folders import save_model
from nbclient import NotebookClient
from site_blocks import DOCS, PAGES, SERVER, Block, blocks_of, commands_of, inline_commands_of

from rlaif.app.command.words import in_full
from rlaif.app.compose import composed, resolved
from rlaif.options.job import Options
from rlaif.options.read import read

SMALL = ("profile=smoke", "tracking=none")
OWN_MODEL = "model=hub"  # profile=smoke would replace it


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all pages write, so that what one has built the next reuses."""
    return tmp_path_factory.mktemp("docs") / "outputs"


@pytest.fixture
def folder(tmp_path: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's current folder, with the model that the pages speak of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLAIF_ROOT", raising=False)
    outputs.mkdir(exist_ok=True)
    (tmp_path / "outputs").symlink_to(outputs)
    save_model(tmp_path / "path" / "to" / "model")
    save_model(tmp_path / "NAME")  # the tokenizer of the served model
    return tmp_path


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    """Serves the model under the pages' word for it; other tests have the server's own again afterwards."""
    abilities, shares = {"top_k", "token_ids", "decoding"}, {"1": 0.6, "2": 0.4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_server, "MODEL", "NAME")
        with LocalServer(abilities, distribution=lambda prompt: shares) as found:
            yield found


def _run(words: list[str], server: LocalServer) -> None:
    words = [in_full(word.replace(SERVER, server.base_url)) for word in words]
    more = ["models.tiny=false"] if OWN_MODEL in words else []
    if {"--config-dir", "--help", "hydra/sweeper=optuna"} & set(words):  # Hydra's own flags and plugins
        flags = words[:2] if words[0] == "--config-dir" else []
        environment = {**os.environ, "RLAIF_ROOT": ".", "HF_HUB_OFFLINE": "1"}
        line = [*flags, *SMALL, *words[len(flags) :]]
        done = processes.run_command(line, cwd=Path.cwd(), env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
    elif "-m" in words:
        for job in _combinations([word for word in words if word != "-m"]):
            assert start_job([*SMALL, *job], "sweep").state == "finished"
    elif "stage=doctor" in words or "plan=true" in words:
        assert start_job([*SMALL, *more, *words]) is None
    else:
        assert start_job([*SMALL, *more, *words]).state == "finished"


def _combinations(words: list[str]) -> list[tuple[str, ...]]:
    """The jobs of a sweep, as Hydra's own sweeper makes them: the last word changes fastest."""
    assert not any("[" in word for word in words), "a list is no sweep"
    values = [
        [f"{key}={value}" for value in told.split(",")] for key, _, told in (w.partition("=") for w in words)
    ]
    return list(product(*values))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CODE)))
def test_every_block_runs(page: Path, folder: Path, server: LocalServer) -> None:
    blocks, names = blocks_of(page), {"__name__": "page"}
    for block in blocks:
        if block.file:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(_whole(block), encoding="utf-8")
    for block in blocks:
        if block.language == "bash":
            for words in commands_of(block):
                _run(words, server)
        elif block.language == "python":
            exec(compile(block.text, str(page), "exec"), names)
        else:
            assert block.file or block.language == "text", f"{page}: {block.language} is run by nothing"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CODE)))
def test_commands_within_the_text_are_commands(page: Path, tmp_path: Path) -> None:
    """They compose, to a job that knows all of their keys; what they would build is tested elsewhere."""
    for words in inline_commands_of(page):
        with composed([*SMALL, f"paths.root={tmp_path}", *map(in_full, words)]) as cfg:
            assert read(Options, resolved(cfg)).stage


def _whole(block: Block) -> str:
    """A block's file. README.md shows the first rows of the one that is whole on the first page."""
    first = {one.file: one.text for one in blocks_of(DOCS / "index.md")}
    whole = first.get(block.file, "")
    return whole if whole.startswith(block.text) else block.text


def test_the_notebook_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(CODE))
    notebook = nbformat.read(DOCS / "tour.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "committed without outputs"
    NotebookClient(
        notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    told = str([cell.get("outputs") for cell in notebook.cells])
    assert "p_a" not in told and "label/alignment" in told and "'ok'" in told
