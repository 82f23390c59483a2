"""The trunk runs once over a sampled text: what decoding computes is what the reward model and the evaluation read."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from jobs import job_context

from rlaif.inference import features as features_module
from rlaif.inference.decoding.sampler import Sampled
from rlaif.io import read_jsonl
from rlaif.records import Prompt
from rlaif.stages.sample import stage as module

WORDS = ["profile=smoke", "tracking=none"]


@pytest.fixture
def computed(monkeypatch):
    """The packed rows that the trunk pass has computed, as a list that grows."""
    rows, compute = [], features_module._compute

    def note(trunk, chosen, device):
        rows.extend(row.group for row in chosen)
        return compute(trunk, chosen, device)

    monkeypatch.setattr(features_module, "_compute", note)
    return rows


def test_the_reward_model_finds_what_sampling_computed(run, copied_root, computed) -> None:
    root = copied_root(["sft"])
    shutil.rmtree(root / "cache" / "trunk")
    sampled = run("stage=sample", root=root)
    assert not computed
    found = run("stage=rm", root=root)
    # The references that rewards are normalised on are none of the policy's texts.
    pairs = list(read_jsonl(root / "artifacts" / sampled.lineage[0].name / "pairs.jsonl"))
    written = {tuple(pair[side]) for pair in pairs for side in ("ids_a", "ids_b")}
    assert pairs and written.isdisjoint(suffix for group in computed for suffix in group.suffixes)
    encode = job_context([*WORDS, f"paths.root={root}"]).encoder.prompt
    prompts = {tuple(encode(pair["prompt"])) for pair in pairs}
    assert prompts.isdisjoint(group.prefix for group in computed)
    computed.clear()
    # An artifact whose features are gone is still good: they are computed, and differ by rounding.
    shutil.rmtree(root / "cache" / "trunk")
    again = run("stage=rm", "force=true", root=root)
    assert computed
    for name in ("rm/best_val_loss", "rm/accuracy"):
        assert again.summary[name] == pytest.approx(found.summary[name], abs=1e-5)


def test_the_evaluation_finds_what_sampling_computed(run, copied_root, computed) -> None:
    root = copied_root(["sft", "sample", "label", "rm", "rl"])
    shutil.rmtree(root / "cache" / "trunk")
    run("stage=eval", root=root)
    assert not computed


@pytest.mark.parametrize("words", [["model.trunk_cache_gb=0"], ["model.trainable=full", "sft.enabled=false"]])
def test_nothing_is_kept_where_nothing_can_be(run, copied_root, words) -> None:
    root = copied_root([])
    shutil.rmtree(root / "cache" / "trunk")
    run("stage=sample", "sft.enabled=false", "sample.num_prompts=4", *words, root=root)
    assert not list(root.glob("cache/trunk/**/*.safetensors"))


def test_only_pairs_that_stay_are_stored(context, monkeypatch) -> None:
    """b of p1 is redrawn and differs then; p2 stays equal; a of p3 is empty twice and stays beside a text."""
    ctx = context("sample.max_redraws=1", "sample.num_samples=1")
    script = {
        0: {("p0", "a"): "x", ("p0", "b"): "y", ("p1", "a"): "x", ("p1", "b"): "x", ("p2", "a"): "x"}
        | {("p2", "b"): "x", ("p3", "a"): "", ("p3", "b"): "y"},
        1: {("p1", "b"): "z", ("p2", "b"): "x", ("p3", "a"): ""},
    }
    end, told, attempts = ctx.model().eos_id, [], iter(script.items())

    def draw(ctx, top, prompts, keys, decoding, max_rows, what, *, keep_features, receive):
        assert keep_features
        attempt, texts = next(attempts)
        assert [(key[1], key[3]) for key in keys] == list(texts)
        # Batches are drawn in an order of their own.
        for index in reversed(range(len(prompts))):
            ids = (*ctx.encoder.tokenizer.encode(texts[keys[index][1], keys[index][3]]), end)
            length = len(ctx.encoder.prompt(prompts[index].prompt)) + len(ids)
            mark = 100 * attempt + 10 * int(keys[index][1][1]) + "ab".index(keys[index][3])
            receive(index, Sampled(ids, True, torch.full((length, 1), float(mark))))

    monkeypatch.setattr(module, "draw", draw)
    draws = module._Draws(ctx, None, lambda *stored: told.append(stored))
    prompts = [replace(ctx.task.train[0], id=f"p{i}", prompt=f"prompt {i}") for i in range(4)]
    assert isinstance(prompts[0], Prompt)
    pending = [(p, 0, side) for p in prompts for side in "ab"]
    draws.draw(pending, 0, last=False)
    draws.draw([slot for p in prompts for slot in module._again(p, 0, draws.samples)], 1, last=True)
    assert sorted(int(features[0, 0]) for _, _, features in told) == [0, 1, 10, 31, 111, 130]
    assert not draws._waiting
    for prompt, response, features in told:
        place = int(features[0, 0]) % 100
        sample = draws.samples[f"p{place // 10}", 0, "ab"[place % 10]]
        assert (tuple(prompt), response) == (tuple(ctx.encoder.prompt(sample.prompt)), sample.ids)
