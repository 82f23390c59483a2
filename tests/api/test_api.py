"""`rlaif.run`, `load_runs`, `Labeler`, `load_policy` and `load_reward_model`, as the documentation shows them."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from jobs import CODE
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import rlaif

PAIRS = [
    {"prompt": "def add(a, b): return a + b", "response_a": "Add two numbers.", "response_b": "Open a file."},
    {"prompt": "def close(f): f.close()", "response_a": "", "response_b": "Close the file."},
]


def test_a_run_is_its_record(api_run, api_root) -> None:
    assert 0 <= api_run.summary["eval/win_rate"] <= 1 and api_run.state == "finished"
    assert api_run.root == api_root and api_run.path.parent.parent == api_root / "runs"
    assert set(api_run.artifacts) == {"sft", "sample", "label", "rm", "rl", "eval"}
    for kind, folder in api_run.artifacts.items():
        assert json.loads((folder / "manifest.json").read_text())["kind"] == kind
    assert len([row for row in api_run.history if "rl/reward" in row]) > 1


def test_the_same_words_reuse_what_is_there(api_run, api_root) -> None:
    again = rlaif.run(["profile=smoke", "tracking=none", f"paths.root={api_root}", "stage=rm"])
    assert again.artifacts["rm"] == api_run.artifacts["rm"] and again.path != api_run.path
    assert again.summary["rm/accuracy"] == api_run.summary["rm/accuracy"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["stage=rm", "labeler=nobody"], "labeler=nobody is not an option of labeler: write one of base"),
        (["rm.learning_rate=1"], "did you mean rm.lr?"),
        (["labeler=base,cot"], "add -m to run a job for each"),
        (["-m", "seed=0,1"], "-m makes none or several"),
        (["plan=true"], "plan=true makes none or several"),
        (["stage=sft", "sft.lr=fast"], "sft.lr=fast"),
    ],
)
def test_what_is_wrong_is_a_user_error_with_the_commands_sentence(api_root, words, sentence) -> None:
    with pytest.raises(rlaif.UserError) as told:
        rlaif.run(["profile=smoke", "tracking=none", f"paths.root={api_root}", *words])
    assert sentence in str(told.value) and "\n" not in str(told.value)


def test_a_job_may_run_after_one_that_failed(api_root) -> None:
    words = ["profile=smoke", "tracking=none", f"paths.root={api_root}", "stage=sft"]
    with pytest.raises(rlaif.UserError):
        rlaif.run([*words, "sft.lr=-1"])
    assert rlaif.run(words).state == "finished"


def test_runs_are_a_frame(api_run, api_root) -> None:
    frame = rlaif.load_runs(api_root)
    assert list(frame.columns[:7]) == ["run", "stage", "name", "group", "started", "path", "overrides"]
    row = frame[frame["run"] == api_run.id].iloc[0]
    assert row["eval/win_rate"] == api_run.summary["eval/win_rate"] and row["path"] == api_run.path
    stages = rlaif.load_runs(api_root, stage="pipeline")
    assert set(stages["stage"]) == {"pipeline"} and stages["run"].tolist() == [api_run.id]
    assert rlaif.load_runs(api_root / "nothing").empty


def _labeler(root, preset: str, *more: str) -> rlaif.Labeler:
    words = ["profile=smoke", f"paths.root={root}", *more]
    return rlaif.Labeler.from_preset(preset, task="docs", overrides=words)


def test_a_labeler_says_what_the_stage_says(api_run, api_root) -> None:
    """The pairs of the run's own labels, by the same labeler: the preferences that the stage has stored."""
    rows = [json.loads(line) for line in (api_run.artifacts["sample"] / "pairs.jsonl").open()][:8]
    pairs = [rlaif.Pair(**{k: v for k, v in row.items() if not k.startswith("ids_")}) for row in rows]
    stored = [json.loads(line) for line in (api_run.artifacts["label"] / "preferences.jsonl").open()]
    expected = {row["pair_id"]: row["p_a"] for row in stored}
    found = _labeler(api_root, "likelihood").label(pairs)
    assert [one.pair_id for one in found] == [pair.id for pair in pairs]
    assert [one.p_a for one in found] == [expected[pair.id] for pair in pairs]


def test_a_labeler_takes_plain_mappings(tmp_path) -> None:
    rule = _labeler(tmp_path, "scripted", "labeler.scripted.rule=longer")
    first, empty = rule.label(PAIRS)
    assert first.p_a > 0.5, "the longer response is better by this rule"
    assert empty.p_a == 0.0, "an empty response loses to any text"
    mirrored = [{**p, "response_a": p["response_b"], "response_b": p["response_a"]} for p in PAIRS]
    assert [one.p_a for one in rule.label(mirrored)] == pytest.approx([1 - first.p_a, 1.0])


def test_a_labeler_needs_no_data_of_its_task(tmp_path) -> None:
    words = ["profile=smoke", f"paths.root={tmp_path}"]
    labeler = rlaif.Labeler.from_preset("scripted", task="custom", overrides=words)
    assert len(labeler.label(PAIRS)) == 2


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda root: _labeler(root, "nobody"), "labeler=nobody is not an option"),
        (lambda root: _labeler(root, "base", "backend=openai"), "has no value"),
        (
            lambda root: rlaif.Labeler.from_preset(
                "base", model="ORG/NAME", overrides=[f"paths.root={root}"]
            ),
            "ORG/NAME",
        ),
        (lambda root: _labeler(root, "scripted").label([{"prompt": "p", "response_a": "a"}]), "response_b"),
    ],
)
def test_a_labeler_that_cannot_be_is_one_sentence(tmp_path, make, sentence) -> None:
    with pytest.raises(rlaif.UserError, match=sentence):
        make(tmp_path).label(PAIRS)


@pytest.fixture(scope="module")
def exported(api_run, api_root, tmp_path_factory):
    """`exported(stage)`: the folder of the run's model as transformers loads it."""

    def export(stage: str):
        folder = tmp_path_factory.mktemp(stage)
        words = ["profile=smoke", "tracking=none", f"paths.root={api_root}", f"stage={stage}"]
        rlaif.run([*words, f"export={folder}"])
        return folder

    return export


def test_a_policy_writes_what_transformers_writes_with_its_export(api_run, exported) -> None:
    """Greedy, against `generate` on the exported model: another implementation of the model and the loop."""
    folder, policy = exported("rl"), rlaif.load_policy(api_run)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    suffix = api_run.config["task"]["suffix"]
    prompts = [pair["prompt"] for pair in PAIRS]
    for prompt, text in zip(prompts, policy.generate(prompts, temperature=0, max_new_tokens=12), strict=True):
        ids = tokenizer(prompt + suffix, return_tensors="pt").input_ids
        out = model.generate(ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :]
        assert text == tokenizer.decode(out, skip_special_tokens=True).strip()


def test_a_policys_noise_is_its_seeds(api_run) -> None:
    policy, prompts = rlaif.load_policy(api_run.path), ["def f(): pass"] * 3
    first = policy.generate(prompts, seed=1)
    assert policy.generate(prompts, seed=1) == first and policy.generate(prompts, seed=2) != first
    assert len(set(first)) > 1, "a prompt that is given twice is answered twice"


def test_a_reward_model_scores_as_transformers_scores_its_export(api_run, exported) -> None:
    folder, rewards = exported("rm"), rlaif.load_reward_model(api_run)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    task, shift = api_run.config["task"], model.config.reward_shift
    prompts = [pair["prompt"] for pair in PAIRS]
    found = rewards.score([*prompts, prompts[1]], ["Add two numbers.", "Close the file.", "  "])
    assert found[2] == -math.inf
    for prompt, response, score in zip(prompts, ["Add two numbers.", "Close the file."], found, strict=False):
        ids = tokenizer(prompt + task["suffix"]).input_ids
        ids += tokenizer(task["separator"] + response).input_ids + [tokenizer.eos_token_id]
        with torch.no_grad():
            logit = model(torch.tensor([ids])).logits.item()
        assert score == pytest.approx(logit + shift, abs=1e-4)


def test_an_ensembles_score_is_the_mean_of_its_members(api_root) -> None:
    run = rlaif.run(["profile=smoke", "tracking=none", f"paths.root={api_root}", "stage=rm", "rm.ensemble=2"])
    rewards = rlaif.load_reward_model(run)
    both = rewards.score(["def f(): pass"], ["Do nothing."])
    members = rewards._members
    alone = []
    for member in members:
        rewards._members = [member]
        alone += rewards.score(["def f(): pass"], ["Do nothing."])
    assert alone[0] != alone[1] and both == pytest.approx([sum(alone) / 2])


def test_models_of_a_run_follow_its_folder(api_run, api_root, tmp_path) -> None:
    """Outputs that were moved are read where they are now."""
    prompts = ["def f(): pass"]
    shutil.copytree(api_root, tmp_path / "moved")
    moved = tmp_path / "moved" / api_run.path.relative_to(api_root)
    assert rlaif.load_policy(moved).generate(prompts) == rlaif.load_policy(api_run).generate(prompts)


def test_models_that_are_not_there_are_one_sentence(api_run, api_root, tmp_path) -> None:
    sft = rlaif.run(["profile=smoke", "tracking=none", f"paths.root={api_root}", "stage=sft"])
    with pytest.raises(rlaif.UserError, match="no reward model"):
        rlaif.load_reward_model(sft)
    with pytest.raises(rlaif.UserError, match="no such run directory"):
        rlaif.load_policy(tmp_path / "nothing")
    gone = replace(api_run, path=tmp_path / "outputs" / "runs" / "pipeline" / "x")
    with pytest.raises(rlaif.UserError, match=r"gone or damaged .*same command again"):
        rlaif.load_policy(gone)


def test_a_comparisons_arms_are_loaded_one_by_one(api_root) -> None:
    words = ["profile=smoke", "tracking=none", f"paths.root={api_root}", "experiments=label_vs_length"]
    compared = rlaif.run(words)
    assert compared.stage == "compare" and sum(name.startswith("rl-") for name in compared.artifacts) == 2
    with pytest.raises(rlaif.UserError, match="compares arms, which have 2 artifacts"):
        rlaif.load_policy(compared)


def test_importing_the_package_loads_nothing_heavy() -> None:
    import subprocess
    import sys

    code = "import sys, rlaif; print(sorted({'torch', 'transformers', 'hydra', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CODE)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rlaif.nothing  # noqa: B018
    assert {name for name in rlaif.__all__ if getattr(rlaif, name) is None} == set()
