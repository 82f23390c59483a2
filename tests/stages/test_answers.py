"""A policy's answers are kept: they are drawn once, whatever it is compared with and whoever judges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from jobs import job_context

from rlaif.data.encode import Cuts
from rlaif.stages.eval import answers as module
from rlaif.stages.eval.answers import _every, _spec, answers, load_baseline, load_policy
from rlaif.stages.graph import Graph
from rlaif.stages.registry import STAGES
from rlaif.tracking.runs import RunRecord


@pytest.fixture(scope="module")
def built(warm_root: Path, pipeline: RunRecord) -> Callable[..., tuple]:
    """`built(*overrides)`: the context and the artifacts of the session's policy."""

    def build(*words: str) -> tuple:
        ctx = job_context(["profile=smoke", "tracking=none", f"paths.root={warm_root}", "stage=eval", *words])
        graph = Graph(ctx, STAGES)
        graph.get("rl")
        return ctx, graph.built

    return build


def test_what_is_kept_is_what_is_drawn(built, monkeypatch) -> None:
    ctx, artifacts = built()
    prompts = ctx.encoder.fitting(ctx.task.test, limit=ctx.options.eval.num_prompts)
    for load in (load_policy, load_baseline):
        policy = load(ctx, artifacts)
        (drawn,) = _every(ctx, policy, prompts, "policy")
        with monkeypatch.context() as patch:
            patch.setattr(module, "_every", None)  # the evaluation of the session's pipeline has drawn them
            assert answers(ctx, policy, "policy", Cuts()) == drawn
    assert drawn[0].ids and [sample.prompt_id for sample in drawn] == [prompt.id for prompt in prompts]


def test_another_judge_reads_the_same_answers(
    pipeline: RunRecord, run: Callable[..., RunRecord], warm_root: Path
) -> None:
    before = {path.name for path in (warm_root / "artifacts").glob("answers-*")}
    record = run("stage=eval", "judge=scripted", "eval.tie_margin=0.17", "eval.max_rows=3")
    assert not [row.reused for row in record.lineage if row.kind == "eval"][0]
    assert {path.name for path in (warm_root / "artifacts").glob("answers-*")} == before
    run("stage=eval", "eval.num_prompts=5")
    assert len({path.name for path in (warm_root / "artifacts").glob("answers-*")} - before) == 2


def test_identity_is_content_and_decoding(built) -> None:
    """A policy that was rebuilt with other weights keeps its name, but not its answers."""
    ctx, artifacts = built()
    policy = load_policy(ctx, artifacts)
    own = _spec(ctx, policy).name
    (source,) = policy.sources
    files = {"top.safetensors": {**source.manifest["files"]["top.safetensors"], "sha256": "0" * 64}}
    other = replace(source, manifest={**source.manifest, "files": {**source.manifest["files"], **files}})
    assert _spec(ctx, replace(policy, sources=(other,))).name != own
    assert _spec(ctx, load_baseline(ctx, artifacts)).name != own
    for words, same in (
        (["eval.temperature=0.5"], False),
        (["eval.top_k=3"], False),
        (["seeds.eval=1"], False),
        (["task.max_response_tokens=8"], False),
        (["judge=scripted"], True),
        (["eval.max_rows=2"], True),
    ):
        changed = job_context(
            ["profile=smoke", "tracking=none", f"paths.root={ctx.root}", "stage=eval", *words]
        )
        assert (_spec(changed, policy).name == own) == same, words


def test_force_all_draws_them_anew(pipeline: RunRecord, run: Callable[..., RunRecord], copied_root) -> None:
    root = copied_root(["sft", "sample", "label", "rm", "rl", "eval"])
    run("stage=eval", "force=true", root=root)
    times = {path: path.stat().st_mtime_ns for path in root.glob("artifacts/answers-*/manifest.json")}
    assert len(times) == 2
    run("stage=eval", "force=true", root=root)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    run("stage=eval", "force=all", "rl.num_epochs=0.5", root=root)
    after = {path: path.stat().st_mtime_ns for path in root.glob("artifacts/answers-*/manifest.json")}
    assert len(after) == 3 and sum(after[path] != time for path, time in times.items()) == 1
