"""Roots that cannot be written and disks that are full: one sentence, and the same numbers once there is room."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal

import pytest

from rlaif.app.command.failures import report
from rlaif.errors import UserError


@pytest.mark.parametrize("stage", [("stage=sft",), ("stage=sft", "plan=true"), ("stage=doctor",)])
@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nothing"])
def test_a_root_that_cannot_be_made_is_one_sentence(run, tmp_path, stage, place) -> None:
    (tmp_path / "file").write_text("not a directory")
    root = tmp_path / place
    with pytest.raises(UserError, match=r"could not be written .*paths\.root") as caught:
        run(*stage, root=root)
    assert str(root) in str(caught.value) and "\n" not in str(caught.value)


def _fill(words, limit, answer) -> None:
    """A job whose files may have no more than `limit` bytes, as on a disk that fills up while they are written."""
    from jobs import start_job

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        start_job(words)
        answer.put("finished")
    except UserError as error:
        answer.put(str(error))
    except BaseException as error:
        answer.put(f"{type(error).__name__}: {error}")


def test_a_disk_that_fills_up_is_one_sentence_and_the_same_numbers_later(run, pipeline, copied_root) -> None:
    """The weights of a top are larger than all other files of a small run."""
    root = copied_root([])
    words = ["profile=smoke", "tracking=none", f"paths.root={root}", "stage=sft"]
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    limit = 30_000
    process = context.Process(target=_fill, args=(words, limit, answer))
    process.start()
    said = answer.get(timeout=120)
    process.join()
    assert "could not be written (File too large)" in said and "make room" in said, said
    assert not list((root / "artifacts").glob("sft-*")), "nothing half-written"
    again = run("stage=sft", root=root)
    for name in ("sft/loss", "sft/val_loss"):
        assert again.summary[name] == pipeline.summary[name]


def _note_failure(notes: str) -> None:
    os.environ["RLAIF_FAILED"] = notes
    report(UserError("what went wrong"))


def test_a_job_that_fails_in_another_process_is_known_to_the_command(tmp_path) -> None:
    """Launchers such as joblib's run jobs in processes of their own; the exit code is the command's."""
    notes = tmp_path / "failed"
    process = multiprocessing.get_context("spawn").Process(target=_note_failure, args=(str(notes),))
    process.start()
    process.join()
    assert process.exitcode == 0 and notes.read_text() == "what went wrong\n"
