"""What RL can maximise: each reward alone, in the whole path, and the options that none can have."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean, pstdev

import pytest
import torch

from rlaif.errors import UserError
from rlaif.inference.rollouts import Rollout
from rlaif.models.split import ScalarHead
from rlaif.models.weights import Normalization, RewardMember
from rlaif.records import Prompt
from rlaif.stages.common.measures.text import rouge_l
from rlaif.stages.common.rewards.kinds import make_reward, reward_config
from rlaif.stages.common.rewards.reward import ModelReward
from rlaif.stages.common.rewards.scale import standardised
from rlaif.tracking.glossary import unknown

CODE = Path(__file__).resolve().parents[2]
HARMLESS = ["task=harmless", f"task.path={CODE / 'tests' / 'fixtures' / 'hh_harmless.jsonl'}"]
BY_RULE = ["reward=direct", "labeler.backend=scripted", "labeler.scripted.rule=longer"]
PATH = {"eval", "rl", "sft"}
WIDE = "task.validation_fraction=0.3"
AS_IT_COMES = "reward.normalize_rows=0"
LIMIT = 32  # task.max_response_tokens


@pytest.fixture(scope="module")
def refused_root(tmp_path_factory) -> Path:
    """A root in which nothing may ever be built; its index of docstrings is made once."""
    return tmp_path_factory.mktemp("refused")


def rollout(prompts: list[Prompt], responses: list[str], seeds: list[int], tokens: int = 1) -> Rollout:
    """Responses of `tokens`, `tokens + 1`, ... tokens, as far as a reward of texts looks at them."""
    lengths = torch.arange(len(prompts)) + tokens
    mask = torch.arange(int(lengths[-1]) + 1)[None, :] >= 1
    mask = mask & (torch.arange(mask.shape[1])[None, :] <= lengths[:, None])
    ids = torch.zeros(mask.shape, dtype=torch.long)
    return Rollout(
        ids,
        ids[..., None].float(),
        mask,
        lengths,
        torch.ones(len(prompts), dtype=torch.bool),
        tuple(prompts),
        tuple(responses),
        tuple(seeds),
    )


def sized_rollout(count: int, **changes) -> Rollout:
    """Longer and longer responses to `count` prompts."""
    prompts = [Prompt(f"p{i}", f"def f{i}(x): return x", "Return x.") for i in range(count)]
    return rollout(
        prompts, ["word " * (4 * i + 1) + "end" for i in range(count)], list(range(count)), **changes
    )


def scripted_score(response: str) -> float:
    """The expected score that the scripted labeler's rule `longer` gives, 1 to 10."""
    target = 1 + 9 * len(response) / (len(response) + 100)
    weights = [math.exp(-abs(rank - target)) for rank in range(1, 11)]
    return sum(rank * w for rank, w in enumerate(weights, start=1)) / sum(weights)


def test_direct_is_the_labelers_expected_score(context) -> None:
    ctx, own = context("labeler=score", *BY_RULE, AS_IT_COMES), sized_rollout(6)
    reward = make_reward(ctx, {})
    got = reward(own).tolist()
    assert got == pytest.approx([(scripted_score(text) - 5.5) / 4.5 for text in own.responses], abs=1e-6)
    assert got == sorted(got) and -1 < got[0] < got[-1] < 1
    assert reward.measures == {
        "rl/reward_unparsed_rate": 0.0,
        "rl/reward_failed_rate": 0.0,
        "rl/usd": 0.0,
    }
    sides = own.samples(), own.samples()[::-1]
    torch.testing.assert_close(torch.tensor(reward.of_pairs(sides, [])), torch.tensor([got, got[::-1]]).T)


def test_direct_answers_are_kept_and_paid_once(context) -> None:
    price = "+prices.usd_per_million.scripted={in: 1000000.0, out: 0.0, cached: 0.0}"
    ctx, own = context("labeler=score", *BY_RULE, price, AS_IT_COMES), sized_rollout(5)
    reward = make_reward(ctx, {})
    first = reward(own).tolist()
    usd, kept = reward.measures["rl/usd"], len(ctx.label_store)
    assert kept == 5 and usd > 5 * 20, "a dollar for each word of the prompts"
    assert reward(own).tolist() == first and reward.measures["rl/usd"] == 0.0
    assert reward(sized_rollout(7)).tolist()[:5] == first and len(ctx.label_store) == 7
    assert reward.measures["rl/usd"] > 0, "two new ones"


def test_a_response_without_a_readable_score_gets_the_least(context) -> None:
    half = ["labeler=score", *BY_RULE, AS_IT_COMES, "labeler.scripted.unparsed_rate=0.4"]
    ctx, own = context(*half, "labeler.max_unparsed=0.9"), sized_rollout(12)
    reward = make_reward(ctx, {})
    got, full = reward(own).tolist(), [(scripted_score(text) - 5.5) / 4.5 for text in own.responses]
    read = [i for i in range(12) if got[i] == pytest.approx(full[i], abs=1e-6)]
    assert 4 < len(read) < 12
    assert {got[i] for i in range(12) if i not in read} == {min(got)} and min(got) == got[read[0]]
    assert reward.measures["rl/reward_unparsed_rate"] == pytest.approx(1 - len(read) / 12)
    sides = own.samples(), own.samples()
    pairs = reward.of_pairs(sides, [])
    assert [i for i, both in enumerate(pairs) if both is not None] == read, "no verdict on what was not read"
    with pytest.raises(UserError, match=r"labeler\.max_unparsed=0\.1"):
        make_reward(context(*half), {})(own)
    silent = context(*half[:-1], "labeler.scripted.unparsed_rate=1", "labeler.max_unparsed=1")
    with pytest.raises(UserError, match="none of an iteration's responses has a score"):
        make_reward(silent, {})(own)


def test_rouge_is_against_the_prompts_own_reference(context) -> None:
    texts = ["Open the file.", "Close the file and leave.", "Sum numbers."]
    prompts = [Prompt(f"p{i}", "code", text) for i, text in enumerate(texts)]
    reward = make_reward(context("reward=rouge", AS_IT_COMES), {})
    assert reward(rollout(prompts, texts, [0, 1, 2])).tolist() == [1, 1, 1]
    turned = rollout(prompts, texts[1:] + texts[:1], [0, 1, 2])
    wanted = [rouge_l(r, p.reference) for r, p in zip(turned.responses, prompts, strict=True)]
    assert reward(turned).tolist() == pytest.approx(wanted) and 0 < wanted[0] < 1
    partly = rollout([*prompts, Prompt("bare", "code")], [*texts, "text"], [0, 1, 2, 3]).samples()
    partly = [partly[3], *partly[:3]]
    assert reward.of_pairs((partly, partly), []) == [None, *[(1.0, 1.0)] * 3], "no reference, no verdict"


def test_length_counts_tokens(context) -> None:
    own = sized_rollout(5, tokens=3)
    assert make_reward(context("reward=length", AS_IT_COMES), {})(own).tolist() == pytest.approx(
        [n / LIMIT for n in (3, 4, 5, 6, 7)]
    )
    aimed = make_reward(context("reward=length", "reward.target=5", AS_IT_COMES), {})
    assert aimed(own).tolist() == pytest.approx([1 - d / LIMIT for d in (2, 1, 0, 1, 2)])


def test_random_noise_belongs_to_seed_and_draw_alone(context) -> None:
    prompts = [Prompt(f"p{i}", "code", "Reference.") for i in range(400)]
    texts, seeds = [f"text {i}" for i in range(400)], list(range(1000, 1400))
    reward = make_reward(context("reward=random"), {})
    got = reward(rollout(prompts, texts, seeds)).tolist()
    assert make_reward(context("reward=random"), {})(rollout(prompts, ["same"] * 400, seeds)).tolist() == got
    assert reward(rollout(prompts[::-1], texts, seeds[::-1])).tolist() == got[::-1]
    other = make_reward(context("reward=random", "seeds.rl=1"), {})(rollout(prompts, texts, seeds)).tolist()
    assert not set(got) & set(other) and len(set(got)) == 400
    # Uniform, of mean 0 and variance 1, each within 4 standard errors.
    assert all(abs(x) < math.sqrt(3) for x in got) and abs(fmean(got)) < 4 * math.sqrt(1 / 400)
    assert abs(pstdev(got) ** 2 - 1) < 4 * math.sqrt(9 * 4 / 45 / 400)
    assert "noise of mean 0 and standard deviation 1" in reward.scale.words
    sides = rollout(prompts, texts, seeds).samples(), rollout(prompts, ["same"] * 400, seeds).samples()
    pairs = reward.of_pairs(sides, [])
    assert reward.of_pairs(sides, []) == pairs and all(a != b for a, b in pairs)
    assert all(a == b for a, b in reward.of_pairs((sides[0], sides[0]), []))


# The scale: mean 0 and standard deviation 1 over references.


def of_references(ctx, *, turned: int = 0) -> tuple[list[Prompt], Rollout]:
    """The validation prompts, and their references (each with that of the one `turned` places on) as written."""
    prompts = ctx.encoder.fitting([p for p in ctx.task.validation if p.reference])
    texts = [p.reference for p in prompts[turned:] + prompts[:turned]]
    lengths = [len(ctx.encoder.response(text)) for text in texts]
    mask = torch.tensor([[False] + [i < n for i in range(max(lengths))] for n in lengths])
    ids = torch.zeros(mask.shape, dtype=torch.long)
    ends = torch.tensor([ctx.encoder.response(text)[-1] == ctx.encoder.eos_id for text in texts])
    seeds = tuple(range(len(texts)))
    own = Rollout(
        ids, ids[..., None].float(), mask, torch.tensor(lengths), ends, tuple(prompts), tuple(texts), seeds
    )
    return prompts, own


@pytest.mark.parametrize(
    "words",
    [
        ["reward=length"],
        ["reward=length", "reward.target=20"],
        [*BY_RULE, "labeler=score"],
        [*BY_RULE, "labeler=likelihood"],
    ],
    ids=["length", "target", "score", "likelihood"],
)
def test_a_reward_is_standardised_on_references_and_says_so(words, context) -> None:
    ctx = context(*words, WIDE, "task.max_response_tokens=80")
    prompts, own = of_references(ctx)
    reward = make_reward(ctx, {})
    got = reward(own).tolist()
    assert len(prompts) > 20
    assert fmean(got) == pytest.approx(0, abs=1e-5) and pstdev(got) == pytest.approx(1, abs=1e-5)
    # The raw scores, and so the order, are those that reward.normalize_rows=0 gives, up to an affine map.
    raw = make_reward(context(*words, WIDE, "task.max_response_tokens=80", "reward.normalize_rows=0"), {})
    told = reward.scale.metrics()
    unit, zero = (4.5, 5.5) if "labeler=score" in words else (1.0, 0.0)
    first = [unit * value + zero for value in raw(own).tolist()]
    assert told["rl/reward_raw_mean"] == pytest.approx(fmean(first), abs=1e-5)
    assert told["rl/reward_raw_sd"] == pytest.approx(pstdev(first), abs=1e-5)
    assert got == pytest.approx([(x - fmean(first)) / pstdev(first) for x in first], abs=1e-4)
    assert told["rl/reward_scale"] == f"mean 0, standard deviation 1 on {len(prompts)} references"
    assert raw.scale.metrics()["rl/reward_raw_sd"] == unit and "1 on" not in raw.scale.words
    few = make_reward(context(*words, WIDE, "task.max_response_tokens=80", "reward.normalize_rows=2"), {})(
        own
    )
    assert sorted(few[:2].tolist()) == pytest.approx([-1, 1], abs=1e-5)
    assert float(few.mean()) != pytest.approx(0, abs=1e-3)


def test_rouge_is_standardised_on_references_of_other_prompts(context) -> None:
    """To its own prompt every reference has 1."""
    ctx = context("reward=rouge", WIDE)
    prompts, own = of_references(ctx, turned=1)
    reward = make_reward(ctx, {})
    got = reward(own).tolist()
    assert fmean(got) == pytest.approx(0, abs=1e-5) and pstdev(got) == pytest.approx(1, abs=1e-5)
    assert (
        reward.scale.words
        == f"mean 0, standard deviation 1 on {len(prompts)} references, each of another prompt"
    )
    _, right = of_references(ctx)
    sd = reward.scale.metrics()["rl/reward_raw_sd"]
    assert (
        reward(right).tolist() == pytest.approx([(1 - reward.scale.mean) / sd] * len(prompts))
        and 0 < sd < 0.3
    )


def test_without_references_the_preferred_responses_give_the_scale(context) -> None:
    ctx = context("reward=length", *HARMLESS)
    assert not any(p.reference for p in ctx.task.validation) and all(p.gold in (0, 1) for p in ctx.task.pairs)
    texts = [p.response_a if p.gold == 1 else p.response_b for p in ctx.encoder.fitting(ctx.task.pairs)]
    scale = make_reward(context("reward=length", *HARMLESS, "task.max_response_tokens=160"), {}).scale
    shares = [min(len(ctx.encoder.raw_response(text)), 160) / 160 for text in texts]
    assert (scale.mean, scale.sd) == (pytest.approx(fmean(shares)), pytest.approx(pstdev(shares)))
    assert scale.words == f"mean 0, standard deviation 1 on {len(texts)} responses of the task's pairs"


def test_a_reward_without_spread_keeps_the_scale_that_it_has_by_itself_or_is_refused(context) -> None:
    """Every reference is cut to the limit: 1e6 times its rounding would be the reward."""
    few = make_reward(context("reward=length"), {}).scale
    assert "on 132 references" in few.words and few.sd > 0.01, (
        "two of validation prompts, both cut: all are read"
    )
    scale = make_reward(context("reward=length", "task.max_response_tokens=8"), {}).scale
    assert (scale.mean, scale.sd, scale.words) == (0, 1, "as it comes, from 0 to 1")
    assert (
        "reward=length gives all 132 references the same, 1: they have no spread to normalise by"
        in scale.problem
    )
    with pytest.raises(UserError, match="has 1 to score; write reward.normalize_rows=0"):
        standardised(context("reward=length"), lambda samples: [None] * (len(samples) - 1) + [0.5], own=None)


# Empty responses.

TEXTS = ["A text.", "", "Another, longer text.", " \u200b\n", "ok"]


def assert_empty_last(rewards: list[float], case: str) -> None:
    """Those of TEXTS: the empty ones alike and below every text."""
    assert rewards[1] == rewards[3] < min(rewards[0], rewards[2], rewards[4]), case


@pytest.mark.parametrize(
    "words",
    [["labeler=score"], ["labeler=likelihood", "labeler.readout.direction=reverse"]],
    ids=["score", "reverse"],
)
def test_a_labelers_reward_of_an_empty_response_is_below_every_texts(words, context) -> None:
    ctx = context(*words, "reward=direct", "labeler.backend=scripted", "labeler.scripted.rule=shorter")
    reward = make_reward(ctx, {})
    own = rollout(
        [Prompt(f"p{i}", f"def f{i}(x): return x", "Return x.") for i in range(5)], TEXTS, [0, 1, 2, 3, 4]
    )
    assert_empty_last(reward(own).tolist(), "of a rollout")
    sides = own.samples(), own.samples()[1:] + own.samples()[:1]
    pairs = reward.of_pairs(sides, [])
    assert_empty_last([a for a, _ in pairs], "of both sides")
    assert pairs[0][0] > pairs[0][1] and pairs[1][0] < pairs[1][1], "text against empty, empty against text"
    both = own.samples()[1:2], own.samples()[3:4]
    assert len({*reward.of_pairs(both, [])[0]}) == 1, "two empty ones tie"


def test_a_reward_model_that_likes_the_bare_end_of_text_best_gives_it_the_least(context, monkeypatch) -> None:
    ctx = context()
    # What a head over tied embeddings may well learn: the shorter, the better.
    monkeypatch.setattr("rlaif.stages.common.rewards.reward.score_pairs", lambda ctx, members, rows: [rows])
    monkeypatch.setattr(
        "rlaif.stages.common.rewards.reward.sequence_scores", lambda top, head, features, last: -last.float()
    )
    member = RewardMember(
        ctx.model().trunk.new_top(), ScalarHead(ctx.model().trunk.config.hidden_size), Normalization(1.0, 0.5)
    )
    reward = ModelReward(ctx, [member], lambda scores: scores.mean(dim=0))
    prompts = [Prompt(f"p{i}", "def f(x): return x") for i in range(5)]
    own = rollout([prompts[i] for i in (1, 3, 0, 2, 4)], [TEXTS[i] for i in (1, 3, 0, 2, 4)], list(range(5)))
    got = reward(own).tolist()
    assert_empty_last([got[2], got[0], got[3], got[1], got[4]], "of a rollout")
    assert got[2:] == [-2.5, -3.5, -4.5], "the texts' own"
    samples = own.samples()
    raw = [(9.0, 1.0), (8.0, 7.0), (2.0, 9.0), (-1.0, 0.0), (0.0, 0.0)]
    pairs = reward.of_pairs((samples, samples[2:] + samples[:2]), raw)
    assert pairs[2:4] == [(2.5, 9.5), (-0.5, pairs[0][0])] and pairs[0][1] == 1.5
    assert pairs[0][0] == pairs[1][0] == pairs[3][1] == pairs[4][1] < -0.5


def test_a_formula_stays_what_it_says(context) -> None:
    """Length and noise are controls: they judge nothing."""
    own = rollout([Prompt(f"p{i}", "code", "Reference.") for i in range(5)], TEXTS, [0, 1, 2, 3, 4], tokens=2)
    assert make_reward(context("reward=length", AS_IT_COMES), {})(own).tolist() == pytest.approx(
        [n / LIMIT for n in (2, 3, 4, 5, 6)]
    )


# The whole path.


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        (["reward=ensemble", "rm.ensemble=2", "rm.lr=0.01"], {*PATH, "rm", "label", "sample"}),
        (["reward=direct", "labeler=score"], PATH),
    ],
    ids=["ensemble", "direct"],
)
def test_a_reward_goes_the_whole_path(words, kinds, run, pipeline) -> None:
    record = run("stage=eval", "judge=scripted", *words)
    summary, rows = record.summary, [row for row in record.history if "rl/reward" in row]
    assert record.state == "finished" and {row.kind for row in record.lineage} == kinds
    assert summary["eval/n"] == 8 and 0 <= summary["eval/reward_win_rate"] <= 1
    assert len(rows) == summary["rl/iterations"] and unknown({*summary, *rows[0]} - {"step", "time"}) == []
    direct = "direct" in words[0]
    assert ("rl/reward_disagreement" in summary) is not direct
    assert "standard deviation 1 on" in summary["rl/reward_scale"]
    assert ("rl/reward_raw_sd" in summary) is direct, "each member has a scale of its own"
    if direct:
        raw = summary["rl/reward"] * summary["rl/reward_raw_sd"] + summary["rl/reward_raw_mean"]
        assert 1 < raw < 10 and summary["rl/usd"] == summary["rl/reward_unparsed_rate"] == 0


def raw(arm, name: str) -> float:
    """A reward of an arm before it was standardised."""
    return arm[name] * arm["rl/reward_raw_sd"] + arm["rl/reward_raw_mean"]


def record_arms(record) -> list[str]:
    return [row["arm"] for row in record.table("arms")]


def test_policies_of_different_rewards_meet(run, pipeline) -> None:
    """What each reward is the mean of is known from other measures."""
    grid = "+grid={reward:[rm,rouge,length,random]}"
    small = ["rl.num_prompts=8", "eval.num_prompts=4", "judge=scripted", "test=[eval/win_rate]"]
    record = run("stage=compare", grid, "compare=[['reward=rouge','reward=rm']]", *small)
    arms, summary = {row["reward"]: row for row in record.table("arms")}, record.summary
    assert list(arms) == ["rm", "rouge", "length", "random"]
    assert len({row.digest for row in record.lineage if row.kind == "rl"}) == 4
    assert len({row.digest for row in record.lineage if row.kind == "rm"}) == 1
    for stage, name in (("rl", ""), ("eval", "_policy"), ("eval", "_baseline")):
        tokens = arms["length"][f"{stage}/{'response_length' if stage == 'rl' else 'length' + name}"]
        assert raw(arms["length"], f"{stage}/reward{name}") == pytest.approx(tokens / LIMIT)
        if stage == "eval":
            assert raw(arms["rouge"], f"eval/reward{name}") == pytest.approx(
                arms["rouge"][f"eval/rouge_l{name}"], abs=1e-7
            )
    assert -1 < raw(arms["random"], "rl/reward") < 1
    # Each arm's own iterations, also of the one that was built before.
    histories = record.table("arm_histories")
    assert list(dict.fromkeys(row["arm"] for row in histories)) == list(record_arms(record))
    for name, arm in zip(record_arms(record), arms.values(), strict=True):
        own = [row for row in histories if row["arm"] == name]
        assert [row["step"] for row in own] == list(range(int(arm["rl/iterations"])))
        assert own[0]["rl/reward"] == arm["rl/reward_start"]
    duel = "reward=rouge_vs_reward=rm/eval/"
    for side in ("policy", "baseline"):
        reward = raw({**arms["rouge"], **summary}, f"{duel}reward_{side}")
        assert reward == pytest.approx(summary[f"{duel}rouge_l_{side}"], abs=1e-6)


def test_direct_by_likelihood_needs_no_label_and_no_reward_model(run, pipeline) -> None:
    record = run("stage=rl", "reward=direct")
    assert {row.kind for row in record.lineage} == {"rl", "sft"}
    assert record.config["labeler"]["name"] == "likelihood" and math.isfinite(record.summary["rl/reward"])


def test_only_the_direct_reward_depends_on_the_labeler(context) -> None:
    """And each reward's own options are in the digest."""

    def slice_of(*words: str) -> dict:
        return reward_config(context(*words))

    assert slice_of("labeler=base") == {"kind": "rm"}
    length = {"kind": "length", "target": 4, "normalize_rows": 256}
    assert slice_of("reward=length", "labeler=base", "reward.target=4") == length
    direct = slice_of("reward=direct", "labeler=score")
    assert direct == slice_of("reward=direct", "labeler=score", "labeler.batch_size=3")
    assert direct != slice_of("reward=direct", "labeler=score", "labeler.preamble=detailed")
    assert direct["labeler"]["options"]["readout"]["kind"] == "score"


def test_a_plan_knows_what_direct_rewards_cost(run, capsys) -> None:
    price = "+prices.usd_per_million.transformers={in: 1000000.0, out: 0.0, cached: 0.0}"
    usd = {}
    for reward in ("direct", "length"):
        run("stage=rl", "plan=true", "labeler=score", "rl.lr=0.7", price, f"reward={reward}")
        rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
        assert [row[1].strip() for row in rows if row[1].strip()][-3:] == ["sft", "rl", "total"]
        (usd[reward],) = [float(row[-2].replace(",", "")) for row in rows if row[1].strip() == "rl"]
    assert usd["direct"] > 1000 and usd["length"] == 0


def test_the_card_names_the_reward(run, pipeline, tmp_path) -> None:
    run("stage=rl", "reward=length", f"export={tmp_path}")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "maximise a reward of length alone" in text and "| Labeler |" not in text
    assert "| Labels |" not in text


# Options.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reward.kind=nonsense"], "reward.kind=nonsense is not known: write reward= and one of rm"),
        (["reward=ensemble"], "rm.ensemble=1 trains one: write rm.ensemble=4"),
        (
            ["reward=ensemble", "rm.ensemble=2", "reward.how=max"],
            "reward.how=max is not known: write mean, min or mean_minus_variance",
        ),
        (["reward=ensemble", "rm.ensemble=2", "reward.coefficient=-1"], "reward.coefficient=-1"),
        (
            ["reward=direct", "labeler=base"],
            "labeler=base compares two: write labeler=score or labeler=likelih",
        ),
        (["reward=direct", "labeler.min_alignment=0.6"], "labeler.min_alignment=null"),
        (["reward=direct", "reward.normalize_rows=1"], "reward.normalize_rows=1"),
        (["reward=length", "reward.normalize_rows=1"], "reward.normalize_rows=1 gives no spread"),
        (["reward=rouge", *HARMLESS], "reward=rouge needs references"),
        (["reward=length", "reward.target=0"], "reward.target=0"),
        (["reward=length", "reward.target=33"], "from 1 to task.max_response_tokens=32, or null"),
    ],
)
def test_options_that_no_reward_can_have_are_refused_at_once(words, said, run, refused_root) -> None:
    with pytest.raises(UserError) as told:
        run("stage=eval", *words, root=refused_root)
    assert said in str(told.value) and len(str(told.value)) < 400
    assert not list((refused_root / "artifacts").glob("*-*")) and not list(
        refused_root.glob("labels.sqlite*")
    )
