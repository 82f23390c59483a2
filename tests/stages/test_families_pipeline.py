"""The whole path through models of other families, from a folder to exports that load anywhere."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from zoo import save

from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.decoding.sampler import sample
from rlaif.models.load import LanguageModel, ModelSpec, load_model
from rlaif.models.weights import load_reward, load_top

# One family with adapters on transposed weights, and one whose every weight is trained. The last two take whole texts
# only: one has position biases, one recurrent states.
TRAINABLE = {
    "qwen3": "top:2",
    "gemma3_text": "top:2",
    "phi3": "top:1",
    "smollm3": "top:2",
    "olmo2": "top:2",
    "gpt_neox": "full",
    "gpt2": "lora:2",
    "qwen3_moe": "top:2",
    "falcon": "top:2",
    "qwen3_next": "top:2",
}
KINDS = {"sft", "sample", "label", "rm", "rl", "eval"}


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> tuple[str, ...]:
    """Words for short texts with references, which are unlike each other."""
    drawn = random.Random(0)
    words = ["".join(drawn.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(300)]
    rows = [{"prompt": " ".join(words[i : i + 4]), "reference": words[i + 4]} for i in range(0, 300, 5)]
    file = tmp_path_factory.mktemp("task") / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = ("sample.num_prompts=16", "rl.num_prompts=8", "eval.num_prompts=4", "task.max_response_tokens=8")
    shares = ("rm.validation_fraction=0.25", "rm.test_fraction=0.25")
    return ("task=custom", f"task.path={file}", "labeler=likelihood", *sizes, *shares)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def folder(root):
    """`folder(name)`: a model of the family `name`."""
    return cache(lambda name: save(root / name, name))


def words_of(name: str, folder: Path) -> tuple[str, ...]:
    model = ("model=hub", f"model.name={folder}", "models.tiny=false", "model.dtype=float32")
    return (*model, f"model.trainable={TRAINABLE[name]}", "model.lora_alpha=8")


def loaded(name: str, folder: Path, cache_dir: Path) -> LanguageModel:
    return load_model(
        ModelSpec("hub", str(folder), None, TRAINABLE[name], "float32", "cpu", False, 8.0), cache_dir
    )


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_family_runs_to_the_end_and_its_policy_loads_elsewhere(run, task, root, folder, tmp_path, name):
    job = (*words_of(name, folder(name)), *task)
    record = run("stage=pipeline", *job, root=root)
    found = {row.kind: root / "artifacts" / row.name for row in record.lineage}
    assert set(found) == KINDS
    assert abs(record.summary["rl/ratio_first"] - 1) <= 1e-5
    assert next(row for row in record.history if "rl/kl" in row)["rl/kl"] == pytest.approx(0, abs=1e-6)

    model = loaded(name, folder(name), tmp_path)
    policy, base = load_top(model, found["rl"]), model.trunk.new_top()
    assert any(not torch.equal(a, b) for a, b in zip(policy.parameters(), base.parameters(), strict=True))
    run("stage=rl", *job, f"export={tmp_path / 'policy'}", root=root)
    prompts = [list(range(20, 40)), list(range(60, 67))]
    ours = sample(policy, prompts, [0, 0], Decoding(6, 0.0), eos_ids={2}, max_rows=4)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", dtype=torch.float32)
    for prompt, response in zip(prompts, ours, strict=True):
        whole = exported.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)
        assert whole[0, len(prompt) :].tolist() == list(response.ids)
    ids = torch.tensor(prompts[:1])
    with torch.no_grad():
        logits = policy.logits(policy(model.trunk(ids)))
        torch.testing.assert_close(exported(ids).logits, logits, rtol=0, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "policy").pad_token_id == 0


@pytest.mark.parametrize("how", ["likelihood", "cot"])
def test_a_model_that_takes_whole_texts_labels_as_one_by_one(run, task, root, folder, how):
    """With chain of thought, a verdict's prompt extends one that has run: nothing of that is kept here."""
    name = "lfm2"
    words = ("model=hub", f"model.name={folder(name)}", "models.tiny=false", "model.dtype=float32")
    job = (*words, "model.trainable=top:2", *(word for word in task if not word.startswith("labeler=")))
    record = run("stage=label", *job, f"labeler={how}", "labeler.min_mass=0", root=root)
    assert record.summary["label/unparsed_rate"] == 0
    assert record.summary["label/tokens_cached"] == 0


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_a_family_reward_model_scores_the_same_elsewhere(run, task, root, folder, tmp_path, name):
    """Its artifacts are those of the test above if that has run."""
    record = run("stage=rm", *words_of(name, folder(name)), *task, f"export={tmp_path / 'rm'}", root=root)
    artifact = next(root / "artifacts" / row.name for row in record.lineage if row.kind == "rm")
    model = loaded(name, folder(name), tmp_path)
    (member,) = load_reward(model, artifact)
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm", dtype=torch.float32)
    ids = torch.randint(3, 250, (2, 21), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = member.head(member.top(model.trunk(ids)))[:, -1]
        torch.testing.assert_close(exported(ids).logits[:, 0], expected, rtol=0, atol=1e-5)
