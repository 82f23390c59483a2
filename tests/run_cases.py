"""Runs a folder of reported cases against this checkout: `python tests/run_cases.py FOLDER [NAME...]`.

Each subfolder is a case with a `run.sh`, whose exit code says whether the product is right (PROJECT and PYTHON are
set), or a `cmd.sh` with commands for the checkout's root, whose last lines are shown for reading: no exit code can say
whether a sentence is a good one. A traceback is never right. If there is a `server.py PORT` next to the cases, it is
started; if there is a `mk_model.py FOLDER`, it makes the `MODELS/` that the commands use.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CODE = Path(__file__).resolve().parents[1]
PORT, OTHER_PORT = "8765", "8799"  # as written in the commands; one that is more likely to be free
SHOWN = 3
SECONDS = 1800


def main(folder: Path, names: list[str]) -> int:
    """Run the cases and print how each ends; 1 if one is certainly wrong."""
    wrong = []
    with tempfile.TemporaryDirectory() as scratch:
        environment = _environment()
        server = _start(folder / "server.py", environment)
        try:
            models = _models(folder / "mk_model.py", Path(scratch), environment)
            for case in _cases(folder, names):
                wrong += [case.name] if _is_wrong(case, models, Path(scratch), environment) else []
        finally:
            if server is not None:
                server.kill()
    print(f"certainly wrong: {', '.join(wrong) or 'none'}")
    return int(bool(wrong))


def _cases(folder: Path, names: list[str]) -> list[Path]:
    cases = {script.parent for name in ("cmd.sh", "run.sh") for script in folder.glob(f"*/{name}")}
    return sorted(case for case in cases if not names or case.name in names)


def _environment() -> dict[str, str]:
    own = {"PROJECT": str(CODE), "PYTHON": sys.executable, "PYTHONPATH": str(CODE), "HF_HUB_OFFLINE": "1"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "WANDB_MODE": "offline", **own, "PATH": path}


def _start(server: Path, environment: dict[str, str]) -> subprocess.Popen[bytes] | None:
    if not server.is_file():
        return None
    started = subprocess.Popen(
        [sys.executable, str(server), OTHER_PORT], env=environment, stderr=subprocess.DEVNULL
    )
    time.sleep(1)
    return started


def _models(maker: Path, scratch: Path, environment: dict[str, str]) -> Path:
    models = scratch / "models"
    if maker.is_file():
        words = [sys.executable, str(maker), str(models)]
        subprocess.run(words, cwd=CODE, env=environment, check=True, capture_output=True)
    return models


def _is_wrong(case: Path, models: Path, scratch: Path, environment: dict[str, str]) -> bool:
    script = case / "run.sh"
    if script.is_file():
        words = ["bash", str(script)]
    else:
        text = (case / "cmd.sh").read_text(encoding="utf-8").replace(PORT, OTHER_PORT)
        root = scratch / "roots" / case.name
        text = text.replace("MODELS/", f"{models}/").replace("train.py ", f"train.py paths.root={root} ")
        words = ["bash", "-c", text]
    started = time.time()
    done = subprocess.run(
        words, cwd=CODE, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    shutil.rmtree(scratch / "roots", ignore_errors=True)
    told = f"{done.stdout}\n{done.stderr}"
    lines = [line for line in told.splitlines() if line.strip()]
    wrong = "Traceback" in told or (script.is_file() and done.returncode != 0)
    print(f"{'WRONG' if wrong else 'ended'} {case.name} ({done.returncode}, {time.time() - started:.0f} s)")
    print("".join(f"    {line[:300]}\n" for line in lines[-SHOWN:]), end="", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
