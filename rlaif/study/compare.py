"""stage=compare: the arms of an experiment side by side, and their policies head to head.

An experiment file (`experiments/NAME.yaml`) gives `arms: {name: [overrides]}` or a `grid:` that makes them,
`repeat:` the seeds that each arm runs with, `until:` the last stage of each, `test:` the metrics of single items
that arms are tested on, `curve:` a plot over the arms, `diagnose:` the arms of a diagnosis by role, `controls:`
arms that must have worked before anything is concluded from them, `compare:` pairs of arms whose policies meet, or
`all`: every policy meets every other and the SFT policy, and `claim:` the hypothesis that all this decides. Arms are
composed in process, so whatever two of them have in common is built once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlaif.errors import UserError
from rlaif.io.lineage import LineageRow
from rlaif.options.read import plain
from rlaif.stages.common.context import Context
from rlaif.stages.common.rewards.kinds import make_reward, reward_parents
from rlaif.stages.eval.answers import load_baseline, load_policy
from rlaif.stages.eval.judges import read_verdicts
from rlaif.stages.eval.relatives import judges_of, labeler_of, pleases_labeler
from rlaif.stages.eval.round_robin import (
    BASELINE,
    meeting_rows,
    read_meetings,
    round_robin,
    strength_items,
    strength_metrics,
)
from rlaif.stages.eval.safety import safety_review
from rlaif.stages.eval.section import same_judge
from rlaif.stages.eval.self_preference import JudgedArm, self_preference_metrics, self_preference_rows
from rlaif.stages.eval.stage import (
    comparison_rows,
    eval_config,
    judge_gate,
    judge_policies,
    policy_reading,
)
from rlaif.stages.graph import Graph
from rlaif.stages.registry import STAGES
from rlaif.stages.rl.alarms import read_history
from rlaif.store import Artifact, ArtifactSpec
from rlaif.study.arm_table import compare_items, curve_rows, mean_summary, standing
from rlaif.study.arms import (
    ALL,
    Arm,
    Curve,
    read_arms,
    read_controls,
    read_curve,
    read_roles,
    read_tests,
    setting,
)
from rlaif.study.claims.claim import check_arms, missing, read_claim
from rlaif.study.claims.measure import CLAIM, claim_row, claim_summary, unmet_row
from rlaif.study.claims.scatter import PLANNED, SCATTER, scatter_rows
from rlaif.study.diagnosis import control_row, diagnose
from rlaif.study.diagnosis_table import diagnosis_table
from rlaif.study.labelers import compare_labelers

VERSION = 4
VERDICT = {
    "win_rate": "eval/win_rate",
    "ci_low": "eval/win_rate_ci_low",
    "ci_high": "eval/win_rate_ci_high",
    "p": "eval/p_value",
    "n": "eval/n",
    "win_rate_lc": "eval/win_rate_lc",
    "win_rate_lc_ci_low": "eval/win_rate_lc_ci_low",
    "win_rate_lc_ci_high": "eval/win_rate_lc_ci_high",
}


def compare_arms(ctx: Context) -> dict[str, Any]:
    """Build every arm, record arms, curve and verdicts as tables, and return the flat summary.

    Nothing is built for a claim whose models or data are not named: it is undecided at once.
    """
    claim, curve, metrics = read_claim(ctx), read_curve(ctx), read_tests(ctx)
    if claim is not None and (needs := missing(ctx, claim)):
        return _claimed(ctx, unmet_row(claim, needs))
    arms = read_arms(ctx)
    if claim is not None:
        check_arms(claim, [arm.name for arm in arms])
    roles, controls = read_roles(ctx, arms), read_controls(ctx, arms)
    graphs = _built(ctx, arms)
    found = _measured(ctx, arms, graphs)
    tests = compare_items(found.items, metrics)
    rows = _arm_rows(ctx, arms, curve, found.summaries, standing(tests))
    tables = found.tables(arms) | {
        "arms": rows,
        "arm_tests": tests,
        "curve": curve_rows(rows, x=curve.x, y=curve.y, by=curve.by) if curve else [],
        "diagnosis": _diagnosis(roles, found.summaries, found.items),
        "controls": [
            control_row(name, kind, found.summaries[name], found.items[name])
            for name, kind in controls.items()
        ],
        SCATTER: scatter_rows(found.items, list(dict.fromkeys([*metrics, *PLANNED]))),
    }
    _labelers(ctx, graphs)
    _record(ctx, graphs, found, tables)
    flat = _flat(ctx, arms, graphs, found)
    if diagnosis := diagnosis_table(tables["diagnosis"]):
        flat[f"{roles['real']}/diagnosis/verdict"] = diagnosis.verdict.sentence
    flat |= {f"{row['arm']}/control/verdict": row["sentence"] for row in tables["controls"]}
    if claim is None:
        return flat
    return flat | _claimed(ctx, claim_row(claim, found.items, found.summaries, found.meetings))


@dataclass(frozen=True)
class Measured:
    """What the arms came to: test items and summaries by arm and seed, and over seeds; who met, and with what result.

    `preferred` has the rows of judges' preferences for their own family.
    """

    items: dict[str, list[list[dict[str, Any]]]]
    runs: dict[str, list[dict[str, Any]]]
    summaries: dict[str, dict[str, Any]]
    duels: dict[tuple[str, str], Artifact]
    robins: list[Artifact]
    meetings: list[list[dict[str, Any]]]
    preferred: list[dict[str, Any]]

    def tables(self, arms: Sequence[Arm]) -> dict[str, list[dict[str, Any]]]:
        """Its own tables of the run."""
        verdicts = [
            {"first": x, "second": y, **{short: duel.metrics.get(name) for short, name in VERDICT.items()}}
            for (x, y), duel in self.duels.items()
        ]
        return {
            "self_preference": self.preferred,
            "arm_runs": [
                {"arm": arm.name, "run": run, **own}
                for arm in arms
                for run, own in zip(arm.runs, self.runs[arm.name], strict=True)
            ],
            "verdicts": verdicts + (meeting_rows(self.meetings) if self.meetings else []),
        }


def _measured(ctx: Context, arms: Sequence[Arm], graphs: Mapping[str, list[Graph]]) -> Measured:
    firsts = {name: group[0] for name, group in graphs.items()}
    pairs = [] if ctx.options.compare == ALL else plain(ctx.options.compare)
    duels = {(x, y): _head_to_head(ctx, firsts[x], firsts[y]) for x, y in pairs}
    items = {name: [graph.items() for graph in group] for name, group in graphs.items()}
    runs = {name: [graph.summary() for graph in group] for name, group in graphs.items()}
    robins = _round_robins(ctx, graphs) if ctx.options.compare == ALL else []
    met = [read_meetings(robin) for robin in robins]
    for index, meetings in enumerate(met):
        for name, own in strength_items(meetings).items():
            items[name][index] += own
            runs[name][index] |= strength_metrics(own)
    summaries = {name: mean_summary(own, items[name]) for name, own in runs.items()}
    preferred = self_preference_rows([_judged_arm(arm, graphs[arm.name]) for arm in arms])
    for name, excess in self_preference_metrics(preferred).items():
        summaries[name] |= excess
    return Measured(items, runs, summaries, duels, robins, met, preferred)


def _flat(
    ctx: Context, arms: Sequence[Arm], graphs: Mapping[str, Sequence[Graph]], found: Measured
) -> dict[str, Any]:
    """The summary's part of arms and head-to-heads, with what there is to say of their judges."""
    flat: dict[str, Any] = {}
    for arm in arms:
        own = found.summaries[arm.name]
        judged = same_judge(own, plain(arm.first.options))
        noted = own | ({"judge/warning": judged} if judged else {})
        flat |= {f"{arm.name}/{key}": value for key, value in noted.items()}
    for (x, y), duel in found.duels.items():
        noted = _judge_notes(ctx, graphs[x][0], graphs[y][0]) | safety_review(ctx, duel)
        flat |= {f"{x}_vs_{y}/{name}": value for name, value in (duel.metrics | noted).items()}
    return flat


def _claimed(ctx: Context, row: dict[str, Any]) -> dict[str, Any]:
    """Records the claim's row, and returns its part of the summary."""
    if ctx.run is not None:
        ctx.run.table(CLAIM, [row])
    return claim_summary(row)


def _judged_arm(arm: Arm, graphs: Sequence[Graph]) -> JudgedArm:
    """What several judges said of the arm's policy, per seed, and whom it was trained to please."""
    config = plain(arm.first.options)
    verdicts = [read_verdicts(graph.built["eval"]) for graph in graphs if "eval" in graph.built]
    labeler = labeler_of(config).family if pleases_labeler(config) else None
    families = {name: own.family for name, own in judges_of(config).items()}
    return JudgedArm(arm.name, labeler, families, verdicts)


def _built(ctx: Context, arms: Sequence[Arm]) -> dict[str, list[Graph]]:
    """The arms' graphs, one per run; all are checked before the first is built."""
    graphs = {arm.name: [Graph(run, STAGES) for run in arm.runs.values()] for arm in arms}
    every = [graph for group in graphs.values() for graph in group]
    for graph in every:
        graph.check(ctx.options.until)
    if ctx.options.compare == ALL:
        _check_start(every)
    for graph in every:
        graph.get(ctx.options.until)
    return graphs


def _check_start(graphs: Sequence[Graph]) -> None:
    """Raises UserError unless all policies start from one, which their strengths are relative to."""

    def start(graph: Graph) -> tuple[Any, ...]:
        ctx = graph.ctx
        sft = graph.name("sft") if ctx.options.sft.enabled else None
        return ctx.model_identity, ctx.encoding, sft

    if any(start(graph) != start(graphs[0]) for graph in graphs):
        raise UserError(
            "compare: all needs arms with the same model, prompt format and SFT policy, which strengths are relative "
            "to: name the pairs that shall meet, as in compare: [[first, second]]"
        )


def _arm_rows(
    ctx: Context,
    arms: Sequence[Arm],
    curve: Curve | None,
    summaries: Mapping[str, dict[str, Any]],
    standings: Mapping[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    """One row per arm: its settings (of the grid and the curve), how it did in the tests, its metrics."""
    keys = list(dict.fromkeys([*plain(ctx.options.grid), *(curve.keys if curve else ())]))
    return [
        {
            "arm": arm.name,
            "seeds": len(arm.runs),
            **{key: setting(arm.first, key) for key in keys},
            **standings.get(arm.name, {}),
            **summaries[arm.name],
        }
        for arm in arms
    ]


def _diagnosis(
    roles: Mapping[str, str],
    summaries: Mapping[str, dict[str, Any]],
    items: Mapping[str, list[list[dict[str, Any]]]],
) -> list[dict[str, Any]]:
    """The checks of the arms that `diagnose:` names; none without it."""
    if not roles:
        return []
    own = {role: summaries[arm] for role, arm in roles.items()}
    return [check.row() for check in diagnose(own, {role: items[arm] for role, arm in roles.items()})]


def _labelers(ctx: Context, graphs: Mapping[str, Sequence[Graph]]) -> None:
    """Compares the arms' labelers on the same gold pairs; arms, and seeds of an arm, with the same labels are one."""
    names: dict[tuple[str, ...], list[str]] = {}
    labelled: dict[str, dict[str, Graph]] = {}
    for name, group in graphs.items():
        labelled[name] = {graph.built["label"].name: graph for graph in group if "label" in graph.built}
        if labelled[name]:
            names.setdefault(tuple(labelled[name]), []).append(name)
    arms = {", ".join(group): list(labelled[group[0]].values()) for group in names.values()}
    items = {name: [STAGES["label"].items(g.ctx, g.built) for g in group] for name, group in arms.items()}
    summaries = {
        name: mean_summary([graph.summary() for graph in group], items[name]) for name, group in arms.items()
    }
    ranking, tests = compare_labelers(items, summaries)
    if ranking and ctx.run is not None:
        ctx.run.table("labelers", ranking)
        ctx.run.table("labeler_tests", tests)


def _head_to_head(ctx: Context, x: Graph, y: Graph) -> Artifact:
    """The policy of arm x (as the policy) against that of arm y (as the baseline).

    An arm's judge may be its own labeler, which would favour it, so the experiment's judge is used. The reward
    columns are by the reward that arm x maximised.
    """
    if x.ctx.model_identity != y.ctx.model_identity or x.ctx.encoding != y.ctx.encoding:
        raise UserError(
            "compare: two policies can meet only if both arms have the same model and prompt format"
        )
    meeting = _meeting(ctx, x)
    first, second = x.built["rl"], y.built["rl"]
    spec = ArtifactSpec(
        "headtohead",
        eval_config(meeting, every=False),
        (first, second, *(x.built[kind] for kind in reward_parents(meeting))),
        meeting.options.seeds.eval,
        VERSION,
        meeting.task.fingerprint,
    )

    def build(folder: Path) -> dict[str, Any]:
        one, two = (load_policy(_meeting(ctx, arm), arm.built) for arm in (x, y))
        return judge_policies(meeting, folder, one, two, make_reward(meeting, x.built), every=False)

    return ctx.store.get_or_build(spec, build)


def _round_robins(ctx: Context, graphs: Mapping[str, Sequence[Graph]]) -> list[Artifact]:
    """For each seed, the verdicts on every pair of the arms' policies, the SFT policy among them."""
    first = next(iter(graphs.values()))[0]
    found = []
    for seed in range(len(next(iter(graphs.values())))):
        players = {name: load_policy(group[seed].ctx, group[seed].built) for name, group in graphs.items()}
        players[BASELINE] = load_baseline(first.ctx, first.built)
        found.append(round_robin(_meeting(ctx, first), players))
    return found


def _meeting(ctx: Context, arm: Graph) -> Context:
    """The arm's context with the experiment's own judges."""
    own, options = arm.ctx.options, ctx.options
    seeds = replace(own.seeds, eval=options.seeds.eval)
    judges = {"judge": options.judge, "judges": options.judges}
    return arm.ctx.with_options(replace(own, **judges, eval=options.eval, seeds=seeds))


def _judge_notes(ctx: Context, x: Graph, y: Graph) -> dict[str, Any]:
    """A warning if the judge of a head-to-head is an arm's labeler that may be guessing."""
    first, second = (judge_gate(_meeting(ctx, arm), arm.built.get("label")) for arm in (x, y))
    return first | second


def _histories(graphs: Mapping[str, Sequence[Graph]]) -> list[dict[str, Any]]:
    """RL's iterations of each arm and `seed` (its place), even if another job built it."""
    return [
        {"arm": name, "seed": place, **row}
        for name, group in graphs.items()
        for place, graph in enumerate(group)
        if "rl" in graph.built
        for row in read_history(graph.built["rl"])
    ]


def _reading(
    graphs: Mapping[str, Sequence[Graph]], duels: Mapping[tuple[str, str], Artifact]
) -> list[dict[str, Any]]:
    """What to read of each head-to-head, or without any of each arm's evaluation (of several seeds, the first)."""
    rows = [
        {"of": f"{x} against {y}", **row}
        for (x, y), duel in duels.items()
        for row in policy_reading(graphs[x][0].ctx, duel, (x, y))
    ]
    evaluated = {name: group[0] for name, group in graphs.items() if "eval" in group[0].built}
    return rows or [
        {"of": name, **row}
        for name, graph in evaluated.items()
        for row in policy_reading(graph.ctx, graph.built["eval"], (name, "Baseline"))
    ]


def _record(
    ctx: Context,
    graphs: Mapping[str, Sequence[Graph]],
    found: Measured,
    tables: Mapping[str, list[dict[str, Any]]],
) -> None:
    if ctx.run is None:
        return
    for name, rows in tables.items():
        ctx.run.table(name, rows)
    ctx.run.table("arm_histories", _histories(graphs))
    lineage: dict[str, LineageRow] = {}
    for graph in (graph for group in graphs.values() for graph in group):
        for row in graph.lineage():
            if row.name not in lineage or not row.reused:  # built by one arm, found by the next
                lineage[row.name] = row
    for (x, y), duel in found.duels.items():
        lineage[duel.name] = ctx.store.lineage(duel)[0]
        ctx.run.table(f"samples_{x}_vs_{y}", comparison_rows(duel, ctx.options.report.samples))
    ctx.run.table("reading_arms", _reading(graphs, found.duels))
    lineage |= {robin.name: ctx.store.lineage(robin)[0] for robin in found.robins}
    ctx.run.lineage(list(lineage.values()))
