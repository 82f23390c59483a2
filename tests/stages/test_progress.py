"""Bars and the terminal they are drawn on."""

from rlaif.io.progress import Progress

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def test_a_bar_that_an_error_left_open_gives_the_cursor_back(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    progress = Progress(True)
    phases = progress.phases("labeler")
    phases("verdicts", 0, 10)
    phases("verdicts", 4, 10)
    left = capsys.readouterr().err
    progress.close()
    assert HIDE in left and SHOW not in left
    assert SHOW in capsys.readouterr().err


def test_a_finished_phase_closes_its_own_bar(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    phases = Progress(True).phases("labeler")
    phases("verdicts", 0, 2)
    phases("verdicts", 2, 2)
    assert SHOW in capsys.readouterr().err
