"""Models from folders, through the command: what the plan approves is what runs, and sizes are the model's own."""

from __future__ import annotations

import json

import pytest
from model_folders import edit_config, edit_weights, end_with_probability, save_model
from tokenizers_of_kinds import byte_tokenizer

from rlaif.app.command.words import expand_home
from rlaif.errors import UserError
from rlaif.models.tiny import PAD


@pytest.fixture
def words(tmp_path):
    """`words(folder, *more)`: a labeling of own pairs by the model in `folder`, which is the policy's base too."""
    rows = [
        {"prompt": f"Say {i}.", "response_a": f"{i}, as told.", "response_b": f"No {i}.", "label": 1.0}
        for i in range(24)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(folder, *more):
        task = ("task=custom", f"task.path={tmp_path / 'rows.jsonl'}", "sft.enabled=false")
        model = ("model=hub", f"model.name={folder}", "models.tiny=false", "model.dtype=float32")
        return (*task, *model, *more)

    return make


@pytest.mark.parametrize("how", [("stage=label",), ("stage=label", "plan=true"), ("stage=doctor",)])
def test_plan_doctor_and_run_refuse_alike(run, words, tmp_path, how, capsys) -> None:
    folder = save_model(tmp_path / "model")
    edit_weights(folder, lambda weights: {n: w for n, w in weights.items() if ".layers.2." not in n})
    more = ("doctor.injection_pairs=0",) if how == ("stage=doctor",) else ()
    with pytest.raises(UserError) as caught:
        run(*how, *words(folder), *more, root=tmp_path / "root")
    told = (
        "".join(capsys.readouterr().out.split())
        if how == ("stage=doctor",)
        else str(caught.value).replace(" ", "")
    )
    assert "thecheckpointlacksmodel.layers.2.input_layernorm.weight" in told.replace("│", "")
    assert not list((tmp_path / "root").glob("artifacts/*-*"))


@pytest.mark.parametrize(
    "values, more, said",
    [
        ({}, ["model.trainable=top:3"], "model.trainable=top:3: K must be in 1..2"),
        ({}, ["task.max_prompt_tokens=1990"], "model.name=.* has a context of 2048"),
        ({"max_position_embeddings": 100}, [], "task.max_prompt_tokens=520 and task.max_response_tokens=128"),
        ({"hidden_act": "prelu"}, ["plan=true"], "lacks model.layers.0.mlp.act_fn.weight"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, ["plan=true"], "quantised"),
        ({}, ["model.dtype=fp16"], "model.dtype=fp16: float16 overflows"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_anything_runs(
    run, words, tmp_path, values, more, said
) -> None:
    folder = save_model(tmp_path / "model")
    edit_config(folder, **values)
    with pytest.raises(UserError, match=said):
        run("stage=label", *words(folder, *more), root=tmp_path / "root")
    assert not list((tmp_path / "root").glob("artifacts/*-*"))


def test_a_labeler_needs_no_trainable_part(run, words, tmp_path, monkeypatch) -> None:
    """A labeler of one layer beside a policy of three; `~` is the home directory for both."""
    save_model(tmp_path / "policy")
    save_model(tmp_path / "small", num_hidden_layers=1)
    monkeypatch.setenv("HOME", str(tmp_path))
    more = ("model.trainable=top:2", "backend.source=hub", "backend.name='~/small'", "labeler=likelihood")
    record = run("stage=label", *words("'~/policy'", *more), root=tmp_path / "root")
    assert record.summary["label/failed_rate"] == 0
    same = run(
        "stage=label",
        *words("'~/policy'", "model.trainable=top:2", "labeler=likelihood"),
        root=tmp_path / "root",
    )
    assert same.summary["label/reused"] == 0, "another labeler, other labels"


def test_another_chat_template_makes_other_artifacts(run, prompts, tmp_path) -> None:
    """SFT, pairs and labels, whether it is the model's own or one that is named."""
    folder, named = save_model(tmp_path / "model"), tmp_path / "named.jinja"
    template = folder / "chat_template.jinja"
    text = template.read_text()
    named.write_text(text.replace("assistant", "bot"))

    def digests(*more):
        words = ("stage=label", *prompts, *_model_words(folder), "sft.enabled=true", "task.chat=true")
        record = run(*words, "sample.num_samples=1", *more, root=tmp_path / "root")
        return {row.kind: row.digest for row in record.lineage}

    first, again = digests(), digests()
    assert first == again and set(first) >= {"sft", "sample", "label"}
    template.write_text(text.replace("assistant", "model"))
    found = [first, digests(), digests(f"model.chat_template={named}")]
    named.write_text(text.replace("assistant", "machine"))
    found.append(digests(f"model.chat_template={named}"))
    for kind in ("sft", "sample", "label"):
        assert len({row[kind] for row in found}) == len(found), kind


@pytest.mark.parametrize(
    "word, expected",
    [
        ("model.name=~/model", "model.name=/home/me/model"),
        ("task.path=[~/a.csv,~/b.csv]", "task.path=[/home/me/a.csv,/home/me/b.csv]"),
        ("task.path=~/a.csv,~/b.csv", "task.path=/home/me/a.csv,/home/me/b.csv"),
        ("paths.root=~", "paths.root=/home/me"),
        ("task.prefix='=~/'", "task.prefix='=~/'"),
        ("~task.prefix", "~task.prefix"),
        ("task.path=a~/b", "task.path=a~/b"),
    ],
)
def test_home_is_a_value_as_in_the_shell(monkeypatch, word, expected) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home(word) == expected


@pytest.fixture
def prompts(tmp_path):
    """The words for a task of prompts with references, whose pairs the policy draws."""
    rows = [{"prompt": f"Say {i}.", "reference": f"{i}, as told."} for i in range(60)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return (
        "task=custom",
        f"task.path={tmp_path / 'prompts.jsonl'}",
        "sft.enabled=false",
        "task.max_response_tokens=8",
    )


def _model_words(folder):
    return ("model=hub", f"model.name={folder}", "models.tiny=false", "model.dtype=float32")


def test_a_model_that_ends_at_once_is_named_as_the_cause(run, prompts, tmp_path) -> None:
    folder = save_model(tmp_path / "model")
    edit_weights(folder, lambda weights: end_with_probability(weights, 0.999999))
    with pytest.raises(
        UserError, match=r"100% of the responses are empty: the policy ends at once with <\|im_end\|> \(2\)"
    ):
        run("stage=sample", *_model_words(folder), *prompts, root=tmp_path / "root")


def test_empty_responses_are_redrawn_then_kept_beside_texts(run, prompts, tmp_path) -> None:
    """Each draw is empty with probability 0.5, and drawn up to three times in all: about 0.5 ** 3 stay so."""
    folder = save_model(tmp_path / "model")
    edit_weights(folder, lambda weights: end_with_probability(weights, 0.5))
    more = ("sample.num_prompts=40", "sample.num_samples=4", "sample.max_redraws=2", "sample.temperature=1")
    record = run(
        "stage=label", "labeler=likelihood", *_model_words(folder), *prompts, *more, root=tmp_path / "root"
    )
    summary = record.summary
    assert summary["sample/empty_rate"] == pytest.approx(0.125, abs=0.06)
    (pairs,) = (tmp_path / "root").glob("artifacts/sample-*/pairs.jsonl")
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    empty = [[not row[f"response_{side}"].strip() for side in "ab"] for row in rows]
    assert sum(map(any, empty)) > 0 and not any(map(all, empty)), "a text beside each empty response"
    (labels,) = (tmp_path / "root").glob("artifacts/label-*/preferences.jsonl")
    p_a = [json.loads(line)["p_a"] for line in labels.read_text().splitlines()]
    assert [p for p, (a, b) in zip(p_a, empty, strict=True) if a or b] == [
        0.0 if a else 1.0 for a, b in empty if a or b
    ], "an empty response loses to any text"


def test_a_response_ends_with_any_token_that_ends_one(run, prompts, tmp_path) -> None:
    """generation_config.json names two; the policy writes the second, and an export carries both."""
    folder = save_model(tmp_path / "model")
    edit_weights(folder, lambda weights: end_with_probability(weights, 0.5, eos_id=0))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    words = (*_model_words(folder), *prompts)
    record = run("stage=sample", *words, root=tmp_path / "root")
    assert record.summary["sample/eos_rate"] > 0.95 and record.summary["sample/mean_tokens"] < 4
    run("stage=sft", *words, "sft.enabled=true", f"export={tmp_path / 'out'}", root=tmp_path / "root")
    for file in ("generation_config.json", "config.json"):
        assert json.loads((tmp_path / "out" / file).read_text())["eos_token_id"] == [2, 0]


@pytest.mark.parametrize("pad", ["none free", "beyond the embedding"])
def test_a_base_model_trains_and_its_exports_load_and_score_the_same(run, words, tmp_path, pad) -> None:
    """EOS is the pad, or the tokenizer's pad has no row; a base model has no chat template either."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = byte_tokenizer(template=None, eos_token=PAD, pad_token=PAD)
    if pad == "beyond the embedding":
        tokenizer = byte_tokenizer()
        tokenizer.add_special_tokens({"pad_token": "[MINE]"})
    folder = save_model(
        tmp_path / "model", tokenizer=tokenizer, vocab_size=259, pad_token_id=None, eos_token_id=0
    )
    job = (*words(folder), "rm.labels=gold", "sample.num_prompts=24")
    run("stage=rm", *job, f"export={tmp_path / 'rm'}", root=tmp_path / "root")
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "rm")
    config = json.loads((tmp_path / "rm" / "config.json").read_text())
    assert loaded.pad_token_id == config["pad_token_id"] not in (None, loaded.eos_token_id)
    run("stage=rl", *job, "reward=length", f"export={tmp_path / 'policy'}", root=tmp_path / "root")
    AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
