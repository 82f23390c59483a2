"""W&B's own variables: honoured where the configuration is silent, refused at the start where they cannot be used."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from jobs import CODE

from rlaif.app.compose import read_options
from rlaif.app.job import wandb_options
from rlaif.errors import UserError
from rlaif.tracking import Run, WandbOptions, check_environment
from rlaif.tracking.wandb_run import resolve_mode

OFFLINE = WandbOptions("p", "offline", None, None, "rm", (), "text")


@pytest.fixture
def options(monkeypatch):
    """`options(*words, **variables)`: what a job of these words is tracked with."""

    def read(*words: str, group: str | None = None, **variables: str) -> WandbOptions | None:
        for name, value in {"WANDB_MODE": "offline", **variables}.items():
            monkeypatch.setenv(name, value)
        with initialize_config_dir(str(CODE / "conf"), version_base="1.3"):
            cfg = compose("config", overrides=list(words))
        return wandb_options(read_options(cfg), group)

    return read


def test_variables_fill_what_the_configuration_leaves_open(options) -> None:
    found = options(
        group="sweep",
        WANDB_PROJECT="theirs",
        WANDB_ENTITY="team",
        WANDB_RUN_GROUP="ablation",
        WANDB_TAGS="a, b,a",
    )
    assert (found.project, found.entity, found.group, found.tags) == (
        "theirs",
        "team",
        "ablation",
        ("a", "b"),
    )
    words = ["tracking.project=mine", "tracking.entity=me", "tracking.group=g", "tracking.tags=[c]"]
    found = options(*words, WANDB_PROJECT="theirs", WANDB_ENTITY="team", WANDB_RUN_GROUP="x", WANDB_TAGS="a")
    assert (found.project, found.entity, found.group, found.tags) == ("mine", "me", "g", ("c",))


def test_without_variables_the_project_is_ours(options, monkeypatch) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    found = options(group="sweep")
    assert (found.project, found.entity, found.group, found.tags) == ("rlaif", None, "sweep", ())


def test_a_text_is_one_tag_and_an_empty_one_none(options) -> None:
    assert options("tracking.tags=mytag").tags == ("mytag",)
    for words in ("tracking.tags=['']", "tracking.tags=[a,'  ']", f"tracking.tags=[{'x' * 65}]"):
        with pytest.raises(UserError, match="tracking.tags has .* a tag must have 1 to 64 characters"):
            options(words)


@pytest.mark.parametrize("value", ["true", "1", "yes"])
def test_wandb_disabled_disables(monkeypatch, value) -> None:
    monkeypatch.setenv("WANDB_DISABLED", value)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert resolve_mode("auto") == "disabled" and resolve_mode("offline") == "offline"


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("WANDB_MODE", "garbage", "'online', 'offline'"),
        ("WANDB_INIT_TIMEOUT", "abc", "a valid number"),
        ("WANDB_BASE_URL", "not a url", "a valid URL"),
        ("WANDB_CONSOLE", "zzz", "'off'"),
    ],
)
def test_a_variable_that_wandb_would_fail_over_is_refused_at_the_start(monkeypatch, name, value, why):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name}={value} cannot be used") as caught:
        check_environment("auto")
    assert why in str(caught.value) and "\n" not in str(caught.value)
    check_environment("disabled")


def test_an_unreachable_server_costs_seconds(monkeypatch, tmp_path) -> None:
    """A server that takes no connection: port 9 of this machine refuses at once."""
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    started = time.monotonic()
    run = _run(tmp_path, WandbOptions("p", "auto", None, None, "rm", (), "text"))
    with run:
        assert run.wandb_run.offline
    assert time.monotonic() - started < 15


def test_what_wandb_refuses_later_costs_nothing(tmp_path, caplog) -> None:
    def broken(*args, **kwargs):
        raise RuntimeError("the service is gone")

    with _run(tmp_path, OFFLINE) as run:
        own = run.wandb_run
        run._mirror.run = SimpleNamespace(
            log=broken, summary=SimpleNamespace(update=broken), finish=own.finish
        )
        run.log({"rm/loss": 0.5}, step=1)
        run.summary({"rm/accuracy": 0.75})
    assert (
        caplog.text.count("W&B does not accept this run's data (the service is gone): the run continues") == 1
    )
    assert '"rm/loss": 0.5' in (tmp_path / "run" / "history.jsonl").read_text()
    assert '"rm/accuracy": 0.75' in (tmp_path / "run" / "summary.json").read_text()
    assert '"state": "finished"' in (tmp_path / "run" / "meta.json").read_text()


def _run(tmp_path, options) -> Run:
    return Run(
        directory=tmp_path / "run",
        stage="rm",
        config={},
        overrides=[],
        group=None,
        name="n",
        wandb_options=options,
    )
