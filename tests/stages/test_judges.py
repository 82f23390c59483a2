"""Several judges of one evaluation: each as it is alone, with its own backend, and what they say together."""

from __future__ import annotations

import math
from html import unescape
from itertools import combinations
from statistics import fmean

import numpy as np
import pytest
from jobs import composed
from local_server import LocalServer
from statsmodels.stats.inter_rater import cohens_kappa

from rlaif.app.compose import judge_overrides, read_options, with_jury
from rlaif.errors import UserError
from rlaif.io import read_jsonl, stable_uniform
from rlaif.stages.common.context import Context
from rlaif.stages.registry import STAGES
from rlaif.tracking.glossary import unknown

RULES = ("overlap", "longer", "hash")
ALONE = {rule: ["judge=scripted", f"judge.scripted.rule={rule}"] for rule in RULES}
FEW = "eval.num_prompts=24"
MARGIN = 0.02


def judges(**own: list[str]) -> str:
    """`judges=` on a command line."""
    return "judges={" + ",".join(f"{name}:{words!r}" for name, words in own.items()) + "}"


THREE = judges(**ALONE)


def behind(server: LocalServer, preset: str = "detailed") -> list[str]:
    return [f"judge={preset}", *served(server)]


def served(server: LocalServer) -> list[str]:
    return [
        "backend=openai",
        f"backend.base_url={server.base_url}",
        "backend.name=toy-model",
        "backend.api=chat",
    ]


def shares(prompt: str) -> dict[str, float]:
    p = 0.05 + 0.8 * stable_uniform(prompt)
    return {"1": p, "2": 0.9 - p, "~": 0.1}


def comparisons(root, record) -> dict[str, dict]:
    (name,) = [row.name for row in record.lineage if row.kind == "eval"]
    return {row["id"]: row for row in read_jsonl(root / "artifacts" / name / "comparisons.jsonl")}


@pytest.fixture(scope="module")
def alone(run, pipeline, warm_root) -> dict[str, dict[str, dict]]:
    """The comparisons of each rule as the only judge."""
    return {rule: comparisons(warm_root, run("stage=eval", FEW, *words)) for rule, words in ALONE.items()}


@pytest.fixture(scope="module")
def together(run, pipeline):
    return run("stage=eval", FEW, THREE)


def value(p: float) -> float:
    return 0.5 if abs(p - 0.5) < MARGIN else float(p > 0.5)


def test_each_judge_says_what_it_says_alone(alone, together, run, warm_root) -> None:
    rows = {row["judge"]: row for row in together.table("judges")}
    assert list(rows) == list(RULES)
    for rule, row in rows.items():
        said = [value(own["p_policy"]) for own in alone[rule].values()]
        single = run("stage=eval", FEW, *ALONE[rule]).summary
        assert row["win_rate"] == pytest.approx(fmean(said)) and row["n"] == len(said) == 24
        assert row["win_rate_ci_low"] == pytest.approx(single["eval/win_rate_ci_low"])
        assert row["p"] == pytest.approx(single["eval/p_value"]) and row["unread_rate"] == 0
        assert (row["model"], row["family"], row["usd"]) == (rule, f"rule {rule}", 0.0)
        assert together.summary[f"eval/win_rate_by_{rule}"] == row["win_rate"]
    verdicts = {tuple(value(own["p_policy"]) for own in alone[rule].values()) for rule in RULES}
    assert len(verdicts) == 3, "rules that differ"
    assert [row["decides"] for row in rows.values()] == [True, False, False]
    assert together.summary["eval/judge"] == "overlap" and together.summary["eval/judges"] == 3
    assert comparisons(warm_root, together) == alone["overlap"], "the first decides"
    items = [row for row in together.table("items") if "eval/win_rate_by_hash" in row]
    assert fmean(row["eval/win_rate_by_hash"] for row in items) == pytest.approx(rows["hash"]["win_rate"])
    assert unknown(together.summary) == []


def test_agreement_is_that_of_the_verdicts_alone(alone, together) -> None:
    rows = together.table("judge_agreement")
    assert [(row["first"], row["second"]) for row in rows] == list(combinations(RULES, 2))
    kappas, same, bounded = [], [], 0
    for row in rows:
        x, y = ([value(own["p_policy"]) for own in alone[row[side]].values()] for side in ("first", "second"))
        table = np.array(
            [[sum(p == (a, b) for p in zip(x, y, strict=True)) for b in (0, 0.5, 1)] for a in (0, 0.5, 1)]
        )
        assert row["n"] == 24 and row["agreement"] == pytest.approx(np.trace(table) / 24)
        assert row["kappa"] == pytest.approx(cohens_kappa(table).kappa)
        if row["kappa_ci_low"] is not None:
            assert row["kappa_ci_low"] <= row["kappa"] <= row["kappa_ci_high"]
            bounded += 1
        kappas.append(row["kappa"])
        same.append(row["agreement"])
    assert bounded, "bounds are left out only where most resamples have a single verdict"
    assert together.summary["eval/judge_kappa"] == pytest.approx(fmean(kappas))
    assert together.summary["eval/judge_agreement"] == pytest.approx(fmean(same))


@pytest.mark.parametrize("how", ["mean", "vote"])
def test_a_panel_decides_by_the_verdicts_of_its_members(how, alone, run, warm_root) -> None:
    record = run("stage=eval", FEW, THREE, f"eval.panel={how}")
    found = comparisons(warm_root, record)
    for name, own in found.items():
        ps = [alone[rule][name]["p_policy"] for rule in RULES]
        if how == "mean":
            assert own["p_policy"] == pytest.approx(fmean(ps))
            expected = value(fmean(ps))
        else:
            votes = sum(value(p) - 0.5 for p in ps)
            expected = 0.5 if votes == 0 else float(votes > 0)
        assert own["outcome"] == {1.0: "win", 0.5: "tie", 0.0: "loss"}[expected]
    assert record.summary["eval/judge"] == f"panel, {how} of overlap, longer, hash"
    assert all(row["decides"] for row in record.table("judges"))
    assert {own["outcome"] for own in found.values()} != {"tie"}


@pytest.mark.parametrize("how", ["mean", "vote"])
def test_a_panel_of_one_is_that_judge(how, alone, run, warm_root) -> None:
    record = run("stage=eval", FEW, judges(longer=ALONE["longer"]), f"eval.panel={how}")
    assert comparisons(warm_root, record) == alone["longer"]
    assert record.table("judge_agreement") == [] and record.summary["eval/judge"] == "longer"


def test_the_page_and_the_terminal_show_the_tables(run, together, warm_root, capsys) -> None:
    run("stage=eval", FEW, THREE)
    text = capsys.readouterr().out
    page = unescape((warm_root / "reports" / f"eval-{together.id}.html").read_text(encoding="utf-8"))
    for shown in (text, page):
        assert "Agreement of judges" in shown and "rule overlap" in shown and "Cohen's kappa" in shown
    assert "Judge overlap decides" in page and "judge: overlap" in page
    rate = next(row["win_rate"] for row in together.table("judges") if row["judge"] == "hash")
    assert f'<td>rule hash</td><td class="n">{100 * rate:.1f}%' in page


def test_a_labeler_here_and_a_judge_behind_a_server(run, pipeline, warm_root) -> None:
    with LocalServer({"top_k"}, distribution=shares) as server:
        near = ["judge=reference"]
        record = run("stage=eval", FEW, judges(gpt=behind(server), near=near, also=behind(server, "base")))
        probes, models = _probes(server)
        assert len(server.asked("/v1/chat/completions")) > 24
    with LocalServer({"top_k"}, distribution=shares) as server:
        single = run("stage=eval", FEW, judges(detailed=behind(server)), "seeds.eval=1")
        assert _probes(server) == (probes, models) and probes > 0, "two judges of one server probe it once"
    assert single.summary["eval/judge"] == "detailed"
    rows = {row["judge"]: row for row in record.table("judges")}
    assert (rows["gpt"]["model"], rows["gpt"]["family"]) == ("toy-model", "toy")
    assert (rows["near"]["model"], rows["near"]["family"]) == ("embedded", "encoder")
    assert rows["gpt"]["tokens_in"] > 0 and record.config["backend"]["engine"] == "transformers"
    labels = [{row.name for row in one.lineage if row.kind == "label"} for one in (record, pipeline)]
    assert labels[0] == labels[1], "the labeler stays in this process"


def _probes(server: LocalServer) -> tuple[int, int]:
    posts = [path for path, body, _ in server.requests if path == "/v1/chat/completions"]
    models = [path for path, _, _ in server.requests if path == "/v1/models"]
    return len(posts) - len(server.asked("/v1/chat/completions")), len(models)


def test_a_labeler_behind_a_server_and_judges_here(run, copied_root) -> None:
    root = copied_root(["sft", "sample"])
    with LocalServer({"top_k"}, distribution=shares) as server:
        words = ["labeler=detailed", *served(server), "eval.labeler_verdict=false"]
        run("stage=label", *words, root=root)
        asked = len(server.requests)
        here = ["judge=detailed", "backend=transformers"]
        record = run("stage=eval", *words, judges(here=here, rule=ALONE["hash"]), root=root)
        assert len(server.requests) == asked, "no judge asks the labeler's server"
    rows = {row["judge"]: row for row in record.table("judges")}
    assert rows["here"]["family"] == "smollm" and rows["here"]["n"] == 8 and rows["here"]["tokens_in"] > 0
    assert record.config["judges"]["here"]["backend"]["engine"] == "transformers"
    assert record.config["backend"]["engine"] == "openai"


def test_another_judge_asks_nothing_again(run, pipeline, warm_root) -> None:
    with LocalServer({"top_k"}, distribution=shares) as server:
        own, seed = behind(server), "seeds.eval=2"
        first = run("stage=eval", seed, judges(gpt=own))
        asked = len(server.asked("/v1/chat/completions"))
        more = run("stage=eval", seed, judges(gpt=own, rule=ALONE["hash"]))
        assert len(server.asked("/v1/chat/completions")) == asked > 0
    eval_of = [next(row for row in record.lineage if row.kind == "eval") for record in (first, more)]
    assert eval_of[0].digest != eval_of[1].digest and not eval_of[1].reused
    assert comparisons(warm_root, first) == comparisons(warm_root, more)
    answers = {frozenset(row.digest for row in r.lineage if row.kind == "answers") for r in (first, more)}
    assert len(answers) == 1


def test_the_judge_that_cannot_be_read_is_named(run, pipeline) -> None:
    mute = [*ALONE["hash"], "judge.scripted.unparsed_rate=1.0"]
    with pytest.raises(UserError) as caught:
        run("stage=eval", judges(good=ALONE["longer"], bad=mute))
    said = str(caught.value)
    assert said.startswith(
        "100.0% of the judge bad's judgements could not be read, more than judges.bad.max_unparsed"
    )
    assert "judges.bad.KEY is judge.KEY among the overrides of judges.bad" in said
    lenient = judges(good=ALONE["longer"], bad=[*mute, "judge.max_unparsed=1.0"])
    record = run("stage=eval", lenient, "eval.panel=vote")
    rows = {row["judge"]: row for row in record.table("judges")}
    assert rows["bad"]["unread_rate"] == 1.0 and rows["bad"]["n"] == 0
    assert record.summary["eval/unparsed"] == 0, "a judge that reads nothing has no part in the panel"
    assert record.summary["eval/win_rate"] == rows["good"]["win_rate"]
    (agreement,) = record.table("judge_agreement")
    assert agreement["n"] == 0 and agreement["kappa"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["judges=reference"], r"judges=reference is no list: write judges=\[NAME,NAME\]"),
        (["judges=[base,base]"], "names a judge twice"),
        (["judges={a:base}"], r"judges.a must be a list of overrides: write a: \[judge=PRESET\]"),
        (["judges={a:['labeler=base']}"], "judges.a: labeler=base is no setting of a judge"),
        (["judges={a:['judgement=base']}"], "judges.a: judgement=base is no setting of a judge"),
        (["judges={a:['judge.samples=0']}"], "judges.a: judge.samples=0"),
        (["judges={a:['judge=base','backend=openai']}"], "judges.a: backend.name has no value"),
        (["eval.panel=mean"], "eval.panel=mean has no judges"),
        (["judges=[base]", "eval.panel=median"], "eval.panel=median is not known: write none, mean or vote"),
    ],
)
def test_judges_that_are_none_are_refused(words, said, run, pipeline) -> None:
    with pytest.raises(UserError, match=said):
        run("stage=eval", *words)


def test_names_of_judges_are_words_that_files_and_metrics_can_have() -> None:
    for name in ("a b", "a/b", "", "-a"):
        with pytest.raises(UserError, match=f"judges: '{name}' is no name for a judge"):
            judge_overrides({name: ["judge=base"]})
    assert judge_overrides(["base", "cot"]) == {"base": ["judge=base"], "cot": ["judge=cot"]}


def _work(warm_root, *more: str):
    words = ["profile=smoke", "tracking=none", f"paths.root={warm_root}", "stage=eval", FEW, *more]
    with composed(words) as cfg:
        return STAGES["eval"].work(Context(with_jury(read_options(cfg), words), None))


def test_a_plan_counts_every_judge(warm_root, pipeline) -> None:
    """Judges alone share the drawing of responses; what they add beyond it is what they add together."""
    with LocalServer({"top_k"}) as server:
        hosted = [*behind(server), "backend.name=gpt-4o"]
        local = ["judge=detailed", "backend=transformers"]
        rule, gpt, here = (_work(warm_root, judges(a=own)) for own in (ALONE["hash"], hosted, local))
        both = _work(warm_root, judges(a=hosted, b=local, c=ALONE["hash"]))
        assert server.requests == []
    assert gpt.usd and here.usd == 0 and both.usd == pytest.approx(gpt.usd)
    assert both.read == pytest.approx(gpt.read + rule.read) and gpt.seconds > 0
    assert both.seconds == pytest.approx(gpt.seconds + rule.seconds)
    assert (
        both.forward - rule.forward == pytest.approx(here.forward - rule.forward)
        and here.forward > rule.forward
    )


def test_settings_of_the_command_line_reach_judges_that_do_not_set_them(warm_root) -> None:
    """What a judge leaves out is as in `judge` and `backend`; one that chooses a backend takes none of another's."""
    words = ["profile=smoke", f"paths.root={warm_root}", "judge.order=first", *served(_Elsewhere())]
    words += [judges(a=["judge=base"], b=["judge=detailed", "judge.order=random", "backend=transformers"])]
    with composed(words) as cfg:
        options = with_jury(read_options(cfg), words)
    a, b = options.jury["a"], options.jury["b"]
    assert (a.judge.order, b.judge.order) == ("first", "random")
    assert (a.backend, a.judge.engine) == (options.backend, "openai")
    assert (b.backend.engine, b.judge.engine, b.judge.min_mass) == ("transformers", "transformers", 0.0)
    assert options.judge_keys == ("judges.a", "judges.b") and options.deciding_keys == ("judges.a",)


class _Elsewhere:
    base_url = "http://127.0.0.1:1/v1"


def test_the_doctor_checks_every_judge(run, pipeline, capsys) -> None:
    with LocalServer({"top_k"}, distribution=shares) as server:
        ask = ["stage=doctor", "labeler=scripted", "doctor.injection_pairs=0"]
        near = ["judge=reference"]
        run(*ask, judges(gpt=behind(server), near=near, rule=ALONE["hash"]))
        told = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert "ok judges.gpt: server" in told and "ok judges.gpt: choices 90.0%" in told
        assert "ok judges.near: choices none: judges.near compares meanings" in told
        assert "ok judges.rule: choices none: judges.rule is a rule" in told
        gone = [*behind(server), "backend.max_retries=0"]
    with pytest.raises(UserError, match="doctor: judges.gpt: server failed"):
        run(*ask, judges(near=near, gpt=gone))
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "-- judges.gpt: choices not checked: its server failed" in told


_DPO = "'rl=dpo','rl.lr=0.03'"
ARMS = f"+arms={{ai:[{_DPO}],people:[{_DPO},'rm.labels=gold']}}"


def test_whom_judges_favour_in_a_comparison(run, pipeline, warm_root) -> None:
    """The judge `own` runs on the labeler's model; what it gives the arm that pleased it beyond the others."""
    own = ["judge=likelihood", "judge.readout.temperature=0.5"]
    more = judges(hash=ALONE["hash"], own=own, longer=ALONE["longer"])
    record = run("stage=compare", ARMS, "compare=[[ai,people]]", "test=[eval/win_rate]", FEW, more)
    rows = {(row["arm"], row["judge"]): row for row in record.table("self_preference")}
    assert list(rows) == [(arm, judge) for arm in ("ai", "people") for judge in ("hash", "own", "longer")]
    related = [key for key, row in rows.items() if row["self_preference"] is not None]
    assert related == [("ai", "own")] and rows["people", "own"]["labeler_family"] is None
    single = run("stage=eval", FEW, "rl=dpo", "rl.lr=0.03", more)
    by_judge = {
        judge: {
            row["id"]: row[f"eval/win_rate_by_{judge}"]
            for row in single.table("items")
            if f"eval/win_rate_by_{judge}" in row
        }
        for judge in ("hash", "own", "longer")
    }
    for judge, said in by_judge.items():
        assert rows["ai", judge]["win_rate"] == pytest.approx(fmean(said.values()))
    excess = fmean(
        by_judge["own"][i] - (by_judge["hash"][i] + by_judge["longer"][i]) / 2 for i in by_judge["own"]
    )
    found = rows["ai", "own"]
    assert found["self_preference"] == pytest.approx(excess) and not math.isclose(excess, 0, abs_tol=1e-6)
    assert found["self_preference_ci_low"] < excess < found["self_preference_ci_high"]
    assert record.summary["ai/eval/self_preference"] == pytest.approx(excess)
    assert "people/eval/self_preference" not in record.summary
    assert "own runs on the labeler's model" in record.summary["ai/judge/warning"]
    assert record.summary["ai/eval/judge"] == "hash"
    report = warm_root / "reports" / f"compare-{record.id}"
    for shown in (unescape(report.with_suffix(".html").read_text()), report.with_suffix(".md").read_text()):
        assert "Win rate by judge" in shown and "own (smollm)" in shown and "own family" in shown
    # Head to head only the one that decides is asked: the verdict is that of this judge alone.
    duel = run("stage=compare", ARMS, "compare=[[ai,people]]", "test=[eval/win_rate]", FEW, *ALONE["hash"])
    name = "ai_vs_people/eval/win_rate"
    assert record.summary[name] == duel.summary[name]
    assert "ai_vs_people/eval/judges" not in record.summary and duel.table("self_preference") == []


def test_policies_meet_before_the_experiments_judges_not_an_arms(run, pipeline) -> None:
    """An arm's own judge may favour it."""
    arms = ARMS.replace("'rm.labels=gold'", "'rm.labels=gold','judges=[reference]'")
    more = judges(hash=ALONE["hash"], longer=ALONE["longer"])
    summary = run("stage=compare", arms, "compare=[[people,ai]]", "test=[eval/win_rate]", FEW, more).summary
    assert (summary["ai/eval/judge"], summary["people/eval/judge"]) == ("hash", "reference")
    assert summary["people_vs_ai/eval/judge"] == "hash"
