"""One budget of responses for every algorithm that draws any, at every size; what an arm has used is what it drew."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from jobs import job_context

from rlaif.app.compose import arm_composer, composed, read_options
from rlaif.app.plan.sizes import SIZES
from rlaif.data.datamodule import PromptCursor
from rlaif.data.encode import Cuts
from rlaif.errors import UserError
from rlaif.inference.rollouts import Rollout, RolloutCollector
from rlaif.io import read_records
from rlaif.options.training import RLOptions
from rlaif.records import Revision
from rlaif.stages.common.context import Context
from rlaif.stages.common.sources import rl_prompts
from rlaif.stages.eval.answers import _drawn, load_baseline
from rlaif.stages.graph import Graph
from rlaif.stages.registry import STAGES
from rlaif.stages.rl.online.build import iterations
from rlaif.study.arms import read_arms
from rlaif.tracking.runs import RunRecord

CONF = Path(__file__).resolve().parents[2] / "conf"
EVERY = sorted(file.stem for file in (CONF / "rl").glob("[!_]*.yaml"))
PAPERS = ("ppo_huang2024", "reinforce_lee2023")  # they state their own numbers
WITHOUT = ("best_of_n", "dpo", "sft_preferred")  # they draw nothing to train on
DRAWING = [name for name in EVERY if name not in (*PAPERS, *WITHOUT)]
BUDGETS = {"small": (96, 32), "medium": (320, 32), "large": (512, 64), "full": (768, 64)}


def settings(*words: str) -> RLOptions:
    with composed(words) as cfg:
        return read_options(cfg).rl


def counted(ctx) -> tuple[int, set[int]]:
    """(responses in all, those of one iteration), prompt by prompt, as the training loop asks for them."""
    options = ctx.options.rl
    if options.algorithm == "sft_revisions":
        return options.num_prompts * (1 + options.revisions), set()
    each = 2 if options.algorithm == "online_dpo" else options.samples_per_prompt
    cursor, drawn = PromptCursor(options.num_prompts, options.prompts_per_iteration, 0), []
    for iteration in range(iterations(ctx, options.num_prompts)):
        drawn.append(sum(each for _ in cursor.indices(iteration)))
    return sum(drawn), set(drawn)


def test_the_sizes_are_those_that_are_counted() -> None:
    assert tuple(BUDGETS) == SIZES and {"sft_revisions", "raft", "online_dpo", "ppo"} <= set(DRAWING)


@pytest.mark.parametrize("size", SIZES)
def test_every_algorithm_draws_as_many_responses(size: str) -> None:
    for name in DRAWING:
        total, per_iteration = counted(job_context([f"rl={name}", f"size={size}", "models.tiny=true"]))
        assert total == BUDGETS[size][0], name
        assert per_iteration in (set(), {BUDGETS[size][1]}), name


@pytest.mark.parametrize("size", SIZES)
def test_the_papers_sizes_stay_theirs(size: str) -> None:
    found = [settings(f"rl={name}", f"size={size}") for name in PAPERS]
    assert [(own.num_prompts, own.prompts_per_iteration) for own in found] == [(116722, 512), (123169, 128)]


def test_what_a_user_sets_counts() -> None:
    def numbers(*words: str) -> tuple[int, int]:
        own = settings(*words)
        return own.num_prompts, own.prompts_per_iteration

    assert numbers("rl=rloo", "size=small", "rl.num_prompts=77") == (77, 8)
    assert numbers("rl=rloo", "rl.samples_per_prompt=8") == (96, 8), "the budget stays"
    assert numbers("rl=grpo", "rl.num_responses=1600", "rl.responses_per_iteration=80") == (200, 10)
    assert numbers("rl=online_dpo", "size=small", "rl.num_responses=64") == (32, 16)
    assert settings("rl=sft_revisions", "rl.revisions=2").num_prompts == 256
    assert numbers("rl=grpo", "profile=smoke", "size=small") == (16, 8), "a profile's own sizes come last"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["rl=rloo", "rl.samples_per_prompt=5"],
            "rl.num_responses=768 is no multiple of rl.samples_per_prompt=5: write rl.num_responses=765 or 770",
        ),
        (
            ["rl=online_dpo", "rl.num_responses=1"],
            "rl.num_responses=1 is no multiple of 2: write rl.num_responses=2",
        ),
        (
            ["rl=sft_revisions", "rl.revisions=4"],
            "rl.num_responses=768 is no multiple of 1 + rl.revisions=4: write rl.num_responses=765 or 770",
        ),
        (["rl=ppo", "rl.num_responses=0"], "rl.num_responses=0 is out of range: write a whole number from 1"),
        (["rl=ppo", "rl.num_responses=many"], "rl.num_responses=many is not a whole number"),
        (["rl=grpo", "rl.samples_per_prompt=null"], "rl.samples_per_prompt=null is not a whole number"),
    ],
)
def test_a_budget_that_does_not_divide_is_refused(words, said) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        settings(*words)


def test_a_number_of_the_environment_is_divided_too(monkeypatch) -> None:
    monkeypatch.setenv("MANY", "96")
    assert settings("rl=rloo", "rl.num_responses=${oc.env:MANY}").num_prompts == 24


def test_the_budget_is_not_in_the_digest_but_what_it_makes_is(context) -> None:
    def name(*words: str) -> str:
        return Graph(context("rl=rloo", *words), STAGES).name("rl")

    assert name() == name("rl.num_responses=4096", "rl.responses_per_iteration=512")
    assert name() != name("rl.num_prompts=8")


# Of the profile's own sizes, only the prompts are left to the budget.
BUDGET = ["seeds.rl=41", "rl.num_responses=32"]
ITERATIONS = ["rl.responses_per_iteration=16", "rl.held_out.every=null", "labeler=likelihood"]
SHARES = {
    "online_dpo": ("2", "2"),
    "sft_revisions": ("1,revisions", None),
    **dict.fromkeys(("ppo", "rloo", "grpo", "raft"), ("samples_per_prompt", "samples_per_prompt")),
}


def of_budget(name: str) -> list[str]:
    """The words with which a preset takes its prompts from the budget, under a profile that sets them."""
    total, part = SHARES[name]
    words = [f"rl={name}", *BUDGET, f"rl.num_prompts=${{share:num_responses,{total}}}"]
    if part is None:
        return words
    return [*words, *ITERATIONS, f"rl.prompts_per_iteration=${{share:responses_per_iteration,{part}}}"]


@pytest.mark.parametrize("name", ["ppo", "rloo", "grpo", "raft", "online_dpo"])
def test_the_summary_counts_what_was_drawn(pipeline, run, monkeypatch, name: str) -> None:
    seen: list[Rollout] = []
    collect = RolloutCollector.collect

    def kept(self, *arguments) -> Rollout:
        seen.append(collect(self, *arguments))
        return seen[-1]

    monkeypatch.setattr(RolloutCollector, "collect", kept)
    summary = run("stage=rl", *of_budget(name)).summary
    assert summary["rl/responses"] == sum(len(rollout) for rollout in seen) == 32
    tokens = sum(int(rollout.response_mask[row].sum()) for rollout in seen for row in range(len(rollout)))
    assert summary["rl/tokens_generated"] == tokens
    assert summary["rl/iterations"] == 2
    pairs = sum(summary.get(f"rl/{what}", 0) for what in ("train_pairs", "unread_dropped", "dropped_pairs"))
    assert summary["rl/labels"] == (pairs if name == "online_dpo" else 0)
    if name == "online_dpo":
        assert pairs + summary["rl/equal_dropped"] == 16
    again = run("stage=rl", *of_budget(name)).summary
    assert {key: again[key] for key in ("rl/responses", "rl/tokens_generated", "rl/labels")} == {
        key: summary[key] for key in ("rl/responses", "rl/tokens_generated", "rl/labels")
    }, "of a policy that was trained before, too"


def test_scores_of_the_labeler_are_labels(pipeline, run) -> None:
    summary = run("stage=rl", *of_budget("ppo"), "reward=direct").summary
    assert summary["rl/labels"] == summary["rl/responses"] == 32


def test_revisions_count_beside_first_responses(pipeline, run, warm_root) -> None:
    record = run("stage=rl", *of_budget("sft_revisions"))
    (row,) = [row for row in record.lineage if row.kind == "revise"]
    rows = read_records(warm_root / "artifacts" / row.name / "revisions.jsonl", Revision)
    assert record.summary["rl/responses"] == sum(1 + len(row.revisions) for row in rows) == 32
    assert record.summary["rl/labels"] == 0


@pytest.mark.parametrize("name", WITHOUT)
def test_what_draws_nothing_says_so(pipeline, run, name: str) -> None:
    summary = run("stage=rl", f"rl={name}").summary
    assert [summary[f"rl/{what}"] for what in ("responses", "tokens_generated", "labels")] == [0, 0, 0]


def test_answers_are_counted_with_those_not_given(
    pipeline: RunRecord, run: Callable[..., RunRecord], warm_root: Path
) -> None:
    """A policy answers once, best of n draws n: the same first draws, and others."""
    once, best = run("stage=eval").summary, run("stage=eval", "rl=best_of_n", "rl.best_of=3").summary
    ctx = job_context(["profile=smoke", "tracking=none", f"paths.root={warm_root}", "rl=best_of_n"])
    graph = Graph(ctx, STAGES)
    graph.get("rl")
    prompts = ctx.encoder.fitting(ctx.task.test, limit=ctx.options.eval.num_prompts, cuts=Cuts())
    assert once["eval/responses"] == len(prompts) and best["eval/responses"] == 3 * len(prompts)
    top = load_baseline(ctx, graph.built).top
    drawn = [one for n in range(3) for one in _drawn(ctx, top, [(prompt, n) for prompt in prompts], "draws")]
    assert best["eval/tokens_generated"] == sum(len(one.ids) for one in drawn)
    assert once["eval/tokens_generated"] < best["eval/tokens_generated"]


def test_the_recipes_differ_in_nothing_else(warm_root) -> None:
    """The arms of experiments=ai_feedback_recipes at a size of the demo: what they share, and what each one draws."""
    words = ["experiments=ai_feedback_recipes", "size=small", "demo.size=small", "models.tiny=true"]
    words += ["repeats=1", "task.packages=[jinja2,rich,click]", f"paths.root={warm_root}", "tracking=none"]
    with composed(words) as cfg:
        ctx = Context(read_options(cfg), None, arm_composer(words))
        arms = {arm.name: arm.first for arm in read_arms(ctx)}
    assert {"rlaif", "raft", "online_dpo", "sft_revisions", "dpo", "best_of_4"} <= set(arms)
    graphs = {name: Graph(own, STAGES) for name, own in arms.items()}
    assert len({graph.name("sft") for graph in graphs.values()}) == 1
    read: dict[str, set[str]] = {"sample": set(), "label": set()}
    prompts = {}
    for name, graph in graphs.items():
        for kind in read:
            if kind in _ancestors(graph, "rl"):
                read[kind].add(graph.name(kind))
        own = arms[name]
        if own.options.rl.algorithm not in ("dpo", "best_of_n"):
            prompts[name] = [p.id for p in rl_prompts(own, own.options.rl.num_prompts, Cuts())]
            assert counted(own)[0] == 96, name
    assert all(len(names) == 1 for names in read.values())
    longest = max(prompts.values(), key=len)
    assert all(ids == longest[: len(ids)] for ids in prompts.values()), "the first ones of one order"


def _ancestors(graph: Graph, kind: str) -> set[str]:
    parents = STAGES[kind].parents(graph.ctx)
    return {*parents, *(name for parent in parents for name in _ancestors(graph, parent))}
