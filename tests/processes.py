"""Processes for tests, forked from a server that has computed nothing, so that torch has no threads there.

The server has imported everything already, which takes a fresh Python longer than a small job does.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

CODE = Path(__file__).resolve().parents[1]
SECONDS = 300

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch", "safetensors.torch", "rlaif.app.job", "transformers.models.llama.modeling_llama"]
)


def start(function: Callable[..., None], *arguments: Any) -> Any:
    """Start `function`, which must be defined at module level, in a separate process."""
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process


class Command:
    """train.py in a process of its own, with the members of `subprocess.Popen` that the tests use."""

    def __init__(
        self,
        words: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        folder: Path | None = None,
        script: Path = CODE / "train.py",
        site: Path | None = None,
    ) -> None:
        place = None if folder is None else str(folder)
        self._process = start(_run, [str(script), *words], str(cwd), dict(env), place, site and str(site))
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise subprocess.TimeoutExpired("a command", timeout or 0)
        return self._process.exitcode


def run_command(
    words: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    script: Path = CODE / "train.py",
    site: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """`python SCRIPT WORDS` up to its end, with what it printed; rlaif itself comes from `site` if that is given."""
    with tempfile.TemporaryDirectory() as folder:
        command = Command(words, cwd=cwd, env=env, folder=Path(folder), script=script, site=site)
        code = command.wait(SECONDS)
        out, err = ((Path(folder) / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess([str(script), *words], code, out, err)


def _run(line: list[str], cwd: str, env: dict[str, str], folder: str | None, site: str | None) -> None:
    """What a fresh Python would do; standard streams go to files in `folder`, or nowhere."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        path = os.devnull if folder is None else os.path.join(folder, name)
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    if site is None:
        os.environ["RLAIF_CODE"] = str(CODE)  # set when the package was imported, by the server
    else:
        for name in [name for name in sys.modules if name.split(".")[0] == "rlaif"]:
            del sys.modules[name]
        sys.path.insert(0, site)
    sys.argv = line
    runpy.run_path(line[0], run_name="__main__")
