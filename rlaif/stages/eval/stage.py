"""stage=eval: the RL policy against the SFT policy on held-out prompts, by the judge and by held-out measures."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from rlaif.data.datamodule import EncodedRow, PreferenceRow, TokenBatch, collate_sequences
from rlaif.data.encode import Cuts
from rlaif.errors import UserError
from rlaif.io import read_jsonl, read_records, write_jsonl, write_records
from rlaif.labelers import LabelResult
from rlaif.options.read import plain
from rlaif.records import Comparison, Pair, Sample
from rlaif.stages.common.context import Context
from rlaif.stages.common.labeling import (
    filler_pairs,
    labeler_identity,
    labeling_work,
    may_be_chance,
    warn,
)
from rlaif.stages.common.limits import cut_metrics, drawing_work, prompt_tokens, response_tokens
from rlaif.stages.common.measures.joining import with_bounds
from rlaif.stages.common.measures.reading import POLICY_RULES, policy_cases, rationale_texts, reading_rows
from rlaif.stages.common.measures.refusals import REFUSALS_FILE, Refusals
from rlaif.stages.common.measures.text import text_report
from rlaif.stages.common.measures.win_rate import (
    compare,
    text_gains,
    text_items,
    win_rate_by_length,
    win_rate_items,
    win_rate_report,
)
from rlaif.stages.common.people import need_references
from rlaif.stages.common.policies import sft_parent
from rlaif.stages.common.rewards.kinds import KINDS, make_reward, reward_parents
from rlaif.stages.common.rewards.reward import CHUNK, Reward, SideRewards
from rlaif.stages.common.rows import encode_pairs, response_ids
from rlaif.stages.common.stage import Parents, Row, Stage, Work
from rlaif.stages.common.training.logprobs import mean_log_ratio
from rlaif.stages.eval.answers import Policy, answers, load_baseline, load_policy, spent
from rlaif.stages.eval.judges import (
    Judges,
    cost,
    judge_name,
    judge_tables,
    judges_config,
    read_verdicts,
    write_judges,
)
from rlaif.stages.eval.safety import (
    SAFETY_FILE,
    Sides,
    check_safety,
    measure_safety,
    safety_config,
    safety_items,
    safety_review,
    safety_work,
)
from rlaif.stats import paired_test, proportion_interval
from rlaif.store import Artifact

logger = logging.getLogger(__name__)

COMPARISONS_FILE = "comparisons.jsonl"
FACTS_FILE = (
    "facts.jsonl"  # by which comparisons are chosen for reading: rewards, the labeler's verdict, ends
)


def _judged(
    ctx: Context, folder: Path, policies: tuple[Policy, Policy], given: Sides, cuts: Cuts, *, every: bool
) -> tuple[list[Comparison], dict[str, Any]]:
    """The comparisons that count, and what judges say of single responses, if they are asked, and cost.

    If `every` judge is asked, the tables of several are written.
    """
    sides = list(zip(*given, strict=True))
    judges = Judges.of(ctx, ctx.options.judge_keys if every else ctx.options.deciding_keys)
    judged = judges.ask(sides)
    asked = [(one.key, one.counters) for one in judged]
    metrics: dict[str, Any] = write_judges(ctx, folder, judged) if every else {}
    if ctx.options.eval.safety:
        first, labeler = next(iter(judges.labelers.items()))
        harm, safety, told = measure_safety(ctx, labeler, policies, given, cuts)
        write_jsonl(folder / SAFETY_FILE, harm)
        metrics |= safety
        asked.append((first, told.counters))
    for key, counters in asked:
        if ctx.options.asked(key).retry is not None:
            logger.info("%s.retry: %d answers were asked again", key, counters["asked_again"])
    return judges.headline(judged, sides), metrics | cost(ctx, asked)


def shows_proxy(ctx: Context) -> bool:
    """Whether the labeler judges too: only if the policy was trained to please it, and it does not decide.

    Revisions, whoever writes them, please no verdict.
    """
    if ctx.options.rl.algorithm == "sft_revisions":
        return False
    kind = KINDS.get(ctx.options.reward.kind)
    if kind is None or not (ctx.options.eval.labeler_verdict and kind.pleases_labeler(ctx.options.rm.labels)):
        return False
    labeler = labeler_identity(ctx, "labeler", 0)
    return all(labeler_identity(ctx, key, 0) != labeler for key in ctx.options.deciding_keys)


def _proxy(
    ctx: Context, comparisons: Sequence[Comparison], pairs: Sequence[Pair], asked: LabelResult
) -> dict[str, float]:
    """`eval/labeler_*`: the labeler's verdict on the same responses, and how far the judge shares it."""
    lengths = [(x.policy_tokens, x.baseline_tokens) for x in comparisons]
    own = compare(pairs, asked.preferences, lengths, tie_margin=ctx.options.eval.tie_margin)
    values = {row["id"]: row["eval/win_rate"] for row in win_rate_items(own)}
    if not values:
        return {}
    judged = {row["id"]: row["eval/win_rate"] for row in win_rate_items(comparisons)}
    decided = [name for name, value in values.items() if value != 0.5 and judged.get(name, 0.5) != 0.5]
    clusters = {x.id: x.cluster for x in comparisons}
    rate = proportion_interval([*values.values()], [clusters[name] for name in values])
    agreed = proportion_interval(
        [float(values[name] == judged[name]) for name in decided], [clusters[name] for name in decided]
    )
    return {
        **with_bounds("eval/labeler_win_rate", rate),
        **(with_bounds("eval/labeler_agreement", agreed) if decided else {}),
    }


def _divergence_name(ctx: Context) -> str:
    """`eval/kl` if responses are sampled from the very distribution whose probabilities are read.

    Greedy and truncated responses are not: the mean of their log-ratios has no lower bound, and is not a KL.
    """
    options, vocabulary = ctx.options.eval, ctx.model().trunk.config.vocab_size
    whole = options.temperature > 0 and not 0 < options.top_k < vocabulary
    return "eval/kl" if whole else "eval/log_ratio"


def _divergence(
    ctx: Context, policy: Policy, baseline: Policy, rows: Sequence[PreferenceRow]
) -> dict[str, float]:
    """How far the policy is from the baseline, nats per response; of best of n, a bound on it.

    A best response is not drawn from a distribution whose probabilities are known: its KL to the policy that it is
    drawn from is at most log n - (n - 1) / n (Beirami et al. 2024, arXiv:2401.01879).
    """
    if policy.best_of > 1:
        return {"eval/kl_bound": math.log(policy.best_of) - (policy.best_of - 1) / policy.best_of}
    if baseline.best_of > 1:
        return {}
    temperature = ctx.options.eval.temperature or 1.0
    ratio = mean_log_ratio(policy.top, baseline.top, _own_responses(ctx, rows), temperature)
    return {_divergence_name(ctx): ratio}


def _own_responses(ctx: Context, rows: Sequence[PreferenceRow]) -> Iterator[TokenBatch]:
    """The policy's own responses (the pairs' a) as batches."""
    encoded = [
        EncodedRow(
            torch.tensor([*ctx.encoder.prompt(row.pair.prompt), *response_ids(ctx, row.pair)[0]]),
            row.prompt,
            row.a,
        )
        for row in rows
    ]
    for start in range(0, len(encoded), CHUNK):
        yield collate_sequences(encoded[start : start + CHUNK]).to(ctx.model().device)


def judge_policies(
    ctx: Context, folder: Path, policy: Policy, baseline: Policy, reward: Reward, *, every: bool
) -> dict[str, Any]:
    """Head-to-head of two policies with every measure in the result table; writes the comparisons.

    `every`: all of several judges are asked, not only those that decide.
    """
    cuts = Cuts()
    new, old = answers(ctx, policy, "policy", cuts), answers(ctx, baseline, "baseline", Cuts())
    comparisons, judged = _judged(ctx, folder, (policy, baseline), (new, old), cuts, every=every)
    write_records(folder / COMPARISONS_FILE, comparisons)
    metrics: dict[str, Any] = win_rate_report(comparisons, seed=ctx.options.seeds.eval) | judged
    metrics |= text_gains(comparisons) | (spent(ctx, policy) if every else {})
    pairs = [Pair.between(p, b) for p, b in zip(new, old, strict=True)]
    labeler = ctx.labeler("labeler", ctx.options.seeds.eval, stored=True) if shows_proxy(ctx) else None
    proxy = None if labeler is None else labeler.label(pairs)
    if proxy is not None:
        metrics |= _proxy(ctx, comparisons, pairs, proxy)
    metrics |= cut_metrics(ctx, "eval", cuts, "prompts")
    for who, samples in (("policy", new), ("baseline", old)):
        for name, value in text_report(samples, "eval").items():
            measure = name.removeprefix("eval/")
            if measure not in ("n", "response_length"):
                base, low, bound = measure.partition("_ci_")
                metrics[f"eval/{base}_{who}{low}{bound}"] = value
    rows = encode_pairs(ctx, pairs, "evaluation")
    metrics |= _divergence(ctx, policy, baseline, rows)
    rewards = reward.of_pairs((new, old), rows)
    metrics |= _rewards(rewards, [pair.cluster for pair in pairs])
    write_jsonl(folder / FACTS_FILE, _facts(ctx, new, old, rewards, proxy))
    return {**metrics, "eval/judge": judge_name(ctx)}


def _facts(
    ctx: Context,
    policy: Sequence[Sample],
    baseline: Sequence[Sample],
    rewards: SideRewards,
    asked: LabelResult | None,
) -> list[Row]:
    """What is known of each comparison beside the judge's verdict, by the pair's id."""
    by_id = {} if asked is None else {row.pair_id: row.p_a for row in asked.preferences}
    told = rationale_texts(asked.judgements) if asked and ctx.options.labeler.cot else {}
    return [
        {
            "id": new.prompt_id,
            "finished": [new.finished, old.finished],
            "rewards": None if both is None else list(both),
            "p_labeler": by_id.get(new.prompt_id),
            "rationale": told.get(new.prompt_id, ""),
        }
        for new, old, both in zip(policy, baseline, rewards, strict=True)
    ]


def policy_reading(ctx: Context, artifact: Artifact, heads: tuple[str, str]) -> list[Row]:
    """The comparisons of an evaluation or a head-to-head that rules choose for reading."""
    facts = {row["id"]: row for row in read_jsonl(artifact.file(FACTS_FILE))}
    comparisons = read_records(artifact.file(COMPARISONS_FILE), Comparison)
    refusals = Refusals.load(ctx.templates.place(REFUSALS_FILE))
    return reading_rows(policy_cases(comparisons, facts, refusals), POLICY_RULES, heads)


def _rewards(rewards: SideRewards, prompts: Sequence[str]) -> dict[str, float]:
    """The rewards that RL's own reward function gives to both policies; empty if it gives none."""
    read = [(both, prompt) for both, prompt in zip(rewards, prompts, strict=True) if both is not None]
    if not read:
        return {}
    policy, baseline = torch.tensor([both for both, _ in read]).unbind(dim=1)
    wins = (policy > baseline).float() + (policy == baseline).float() / 2
    gain, _ = paired_test(policy.tolist(), baseline.tolist(), [prompt for _, prompt in read], outcomes=False)
    return {
        **with_bounds("eval/reward_gain", gain),
        "eval/reward_policy": float(policy.mean()),
        "eval/reward_baseline": float(baseline.mean()),
        "eval/reward_win_rate": float(wins.mean()),
    }


def comparison_rows(artifact: Artifact, limit: int | None = None) -> list[dict[str, Any]]:
    """Samples side by side, for tables and reports."""
    rows = read_records(artifact.file(COMPARISONS_FILE), Comparison)
    return [
        {
            "id": r.id,
            "prompt": r.prompt,
            "policy": r.policy_response,
            "baseline": r.baseline_response,
            "reference": r.reference,
            "outcome": r.outcome,
            "p_policy": r.p_policy,
            "policy_tokens": r.policy_tokens,
            "baseline_tokens": r.baseline_tokens,
        }
        for r in rows[:limit]
    ]


def _build(ctx: Context, folder: Path, parents: Parents) -> dict[str, Any]:
    policy, baseline = load_policy(ctx, parents), load_baseline(ctx, parents)
    return judge_policies(ctx, folder, policy, baseline, make_reward(ctx, parents), every=True)


def eval_config(ctx: Context, *, every: bool = True) -> dict[str, Any]:
    """The slice that a head-to-head depends on besides the two policies; `every` as in `judge_policies`."""
    options = plain(ctx.options.eval)
    for name in ("max_rows", "labeler_verdict", "panel", "safety", "num_safe_prompts"):
        del options[name]
    return {
        "eval": options,
        **judges_config(ctx, every=every),
        **({"proxy": labeler_identity(ctx, "labeler", ctx.options.seeds.eval)} if shows_proxy(ctx) else {}),
        **safety_config(ctx),
        "model": ctx.model_identity,
        "encoding": ctx.encoding,
    }


def judge_gate(ctx: Context, labels: Artifact | None) -> dict[str, Any]:
    """A warning if a judge is the labeler, and its alignment on `labels` (None: not asked) may be chance."""
    labeler = labeler_identity(ctx, "labeler", 0)
    same = [key for key in ctx.options.judge_keys if labeler_identity(ctx, key, 0) == labeler]
    if labels is None or not same or not may_be_chance(labels.metrics):
        return {}
    low = labels.metrics["label/alignment_ci_low"]
    who = f"judge {', '.join(map(ctx.options.named, same))}" if ctx.options.jury else "judge"
    sentence = (
        f"The {who} is the labeler {ctx.options.labeler.name}, whose alignment may be as low as {low:.3f}: "
        "its verdicts may be guesses, and the win rate with them."
    )
    return warn(ctx, "eval/warning", "judge at chance", sentence)


def _work(ctx: Context) -> Work:
    rows = 2 * min(ctx.options.eval.num_prompts, len(ctx.task.test))
    prompt, response = prompt_tokens(ctx), response_tokens(ctx)
    judged = filler_pairs(ctx, ctx.task.test[: ctx.options.eval.num_prompts])
    work = Work()
    for key in ctx.options.judge_keys:
        work += labeling_work(ctx, key, ctx.options.seeds.eval, judged)
    if shows_proxy(ctx):
        work += labeling_work(ctx, "labeler", ctx.options.seeds.eval, judged)
    # Two policies' log-probabilities of one of them, and a reward model's scores of both.
    scored = 2 * rows * (prompt + response)
    best_of = ctx.options.rl.best_of if ctx.options.rl.algorithm == "best_of_n" else 1
    drawn = drawing_work(ctx, rows / 2, ctx.options.eval.max_rows, times=1 + best_of)
    if best_of > 1:
        scored += rows / 2 * best_of * (prompt + response)
    return work + drawn + Work(scored=scored) + safety_work(ctx, best_of)


def _check(ctx: Context) -> None:
    for key in ctx.options.judge_keys:
        need_references(ctx, key)
        labeler_identity(ctx, key, ctx.options.seeds.eval)
    check_safety(ctx)
    if not ctx.task.test:
        raise UserError(
            f"task.test_fraction={ctx.options.task.test_fraction} leaves task {ctx.options.task.name} no prompt to "
            "compare policies on: write a larger one, such as 0.15"
        )


def _items(ctx: Context, built: Parents) -> list[Row]:
    """One row per prompt: what `eval/win_rate`, the text measures and those of safety are the means of."""
    comparisons = read_records(built["eval"].file(COMPARISONS_FILE), Comparison)
    found = {row["id"]: row for row in text_items(comparisons)}
    said = (
        {"id": row["id"], f"eval/win_rate_by_{row['judge']}": row["value"]}
        for row in read_verdicts(built["eval"])
    )
    for row in (*win_rate_items(comparisons), *said, *safety_items(_safety_rows(built["eval"]))):
        found[row["id"]] = found.get(row["id"], {}) | row
    return list(found.values())


def _safety_rows(artifact: Artifact) -> list[Row]:
    """The rows of an evaluation that measured safety; none of any other."""
    measured = SAFETY_FILE in artifact.manifest["files"]
    return list(read_jsonl(artifact.file(SAFETY_FILE))) if measured else []


def _tables(ctx: Context, built: Parents) -> dict[str, list[Row]]:
    """Samples to read, the win rate by how long the policy's responses are, and what several judges say."""
    comparisons = read_records(built["eval"].file(COMPARISONS_FILE), Comparison)
    tables = {
        "samples": comparison_rows(built["eval"]),
        "win_rate_by_length": win_rate_by_length(comparisons),
        **judge_tables(built["eval"]),
        "reading_policy": policy_reading(ctx, built["eval"], ("Policy", "Baseline")),
    }
    questions = [row for row in _safety_rows(built["eval"]) if "kind" in row]
    return tables | ({"harmless_questions": questions} if questions else {})


STAGE = Stage(
    "eval",
    9,
    "eval",
    lambda ctx: ("rl", *reward_parents(ctx), *sft_parent(ctx)),
    eval_config,
    _build,
    _work,
    _check,
    lambda ctx, built: judge_gate(ctx, built.get("label")),
    safety_review,
    again=lambda ctx: any(ctx.options.asked(key).retry is not None for key in ctx.options.judge_keys),
    items=_items,
    tables=_tables,
)
