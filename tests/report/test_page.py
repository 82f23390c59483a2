"""The page as a whole: one file, everything escaped, numbers in place, missing pieces tolerated."""

import base64
import hashlib
import html
import re
from html.parser import HTMLParser

import pytest
from synthetic_runs import ATTACK, CONFIG, LINEAGE, PATH_SUMMARY, SAMPLES, full_run, ppo_history, write_run

from rlaif.errors import UserError
from rlaif.io.lineage import ArtifactKey, LineageRow
from rlaif.io.versions import library_versions
from rlaif.report.page import render_report
from rlaif.tracking.runs import find_runs

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags, ids, references and a check that elements nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.references, self.open, self.words = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for key, value in attrs if key == "id"]
        self.references += [value for key, value in attrs if key in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def render(root, title="A report"):
    text = render_report(find_runs(root, state=None), root / "report.html", title=title).read_text()
    page = Page(text)
    assert page.open == []
    return text, page


@pytest.fixture(scope="module")
def full_page(tmp_path_factory):
    """The page of one whole pipeline run, rendered once."""
    root = tmp_path_factory.mktemp("full")
    full_run(root)
    return render(root)


def test_one_self_contained_file(full_page):
    text, page = full_page
    assert page.tags.count("script") == 1 and "link" not in page.tags and "img" not in page.tags
    own = re.search(r"<script>(.*)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    allowed = html.unescape(re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]).split("; ")
    assert {"default-src 'none'", f"script-src 'sha256-{digest}'"} < set(allowed), (
        "no request, no other script"
    )
    assert all(reference.startswith("#") for reference in page.references)
    assert not re.search(r"@import|url\((?!#)", text)
    assert page.tags.count("svg") == 8  # forest, proxy, construction, reliability, three stages, lineage


def test_ids_are_unique_and_references_resolve(full_page):
    text, page = full_page
    assert len(page.ids) == len(set(page.ids)) > 50
    wanted = set(re.findall(r"url\(#([^)]+)\)", text)) | {name[1:] for name in page.references}
    assert wanted and wanted <= set(page.ids)


def reading(text: str, **changes):
    """A row of the tables by which samples are chosen for reading."""
    row = dict.fromkeys(("rule", "why", "id", "prompt", "reference", "origin", "rationale"), text)
    more = {"heads": [text, text], "responses": [text, text], "marks": [[text], []], "verdicts": {text: 0.25}}
    return row | more | {"margin": -1.5} | changes


def test_samples_chosen_by_rule_stand_below_their_rule(tmp_path):
    marked = {
        "rule": "Most changed",
        "why": "many words",
        "marks": [["copies", "truncated"], []],
        "rationale": "",
    }
    tables = {
        "reading_policy": [reading("one", rule="Reward against judge"), reading("two", **marked)],
        "reading_labels": [reading("three", rule="Labeler against gold", margin=None)],
    }
    write_run(tmp_path, "run-a", summary=PATH_SUMMARY, tables=tables)
    text, page = render(tmp_path)
    section = text[text.index("<h2>Reading the samples") :]
    places = [
        section.index(f"<summary>{rule} (1)")
        for rule in ("Reward against judge", "Most changed", "Labeler against gold")
    ]
    assert places == sorted(places)
    assert (
        section.index("Many words.") > places[1] and "reward: -1.50" in section and "one: p = 0.25" in section
    )
    assert '<span class="badge loss">copies</span> <span class="badge loss">truncated</span>' in section
    assert section[: places[2]].count("labeler's rationale") == 1, "of the first; the second has none"
    assert "copies (at least 80% of its word 4-grams are in the prompt)" in section


def test_a_comparison_names_whose_samples_they_are(tmp_path):
    rows = [reading("x", of=f"{name} against SFT", rule="Most changed") for name in ("ppo", "dpo")]
    write_run(tmp_path, "run-a", summary=PATH_SUMMARY, tables={"reading_arms": rows})
    text, _ = render(tmp_path)
    assert "ppo against SFT: Most changed (1)" in text and "dpo against SFT: Most changed (1)" in text


def test_model_text_is_escaped_everywhere(tmp_path):
    evil = {"labeler": {"name": ATTACK}, "judge": {"name": "other"}}
    for seed, label in enumerate((ATTACK, "plain $x_{ $")):
        write_run(
            tmp_path,
            f"run-{seed}",
            summary=PATH_SUMMARY | {"eval/judge": ATTACK, "eval/baseline": ATTACK, "rl/kl": 1.0 + seed},
            overrides=[f"labeler={label}"],
            config=evil | {"seed": seed},
            history=ppo_history(),
            alerts=[{"title": ATTACK, "text": ATTACK}],
            tables={
                "samples": [dict.fromkeys(("prompt", "policy", "baseline", "reference", "outcome"), ATTACK)],
                "judgements": [{ATTACK: ATTACK}],
                "reading_policy": [reading(ATTACK)],
            },
            lineage=[LineageRow(ATTACK, ATTACK, seed=ATTACK)],
        )
    text, page = render(tmp_path, title=ATTACK)
    assert text.count("<script") == page.tags.count("script") == 1, "the page's own"
    assert "<img" not in text and "img" not in page.tags
    assert text.count("&lt;script&gt;") > 10
    # Mutation check: the same text without escaping is what the assertion would catch.
    assert text.replace("&lt;script&gt;", "<script>", 1).count("<script") == 2


def test_numbers_sections_and_samples(full_page):
    text, page = full_page
    words = " ".join(" ".join(page.words).split())
    for expected in (
        "beats the SFT policy",
        "63% of 256 prompts",
        "0.100 → 0.940",
        "57.0–69.0%",
        "p &lt; 0.001",
        "812,345",
        "mismatched (n = 90)",
        "Low choice mass",
        "6 artifacts in 12 min 26 s",
        library_versions()["torch"],
    ):
        assert expected in words or expected in text, expected
    # 14 samples, outcome by index modulo 6 (win, win, loss, tie, win, loss): 8 wins, 4 losses, 2 ties.
    assert [text.count(f'class="badge {outcome}"') for outcome in ("win", "loss", "tie")] == [8, 4, 2]
    assert [word in words for word in ("8 more", "Labels", "Lineage", "reused")] == [True] * 4
    assert "worst" not in words and "somewhere-private" not in text


def test_first_samples_show_wins_losses_and_ties(full_page):
    text, _ = full_page
    visible = text[text.index("<h2>Samples") : text.index('<details class="more"><summary>8 more')]
    assert re.findall(r'class="badge (\w+)"', visible) == ["win", "win", "loss", "loss", "tie", "tie"]


def test_glossary_explains_metrics(full_page):
    text, _ = full_page
    assert re.search(r'<abbr title="eval/win_rate – [^"]*ties/2', text)


def test_an_ablation_marks_ties_and_shows_differing_config_only(tmp_path):
    for index, (label, win) in enumerate((("cot", 0.66), ("detailed", 0.64), ("base", 0.45))):
        rate = {"eval/win_rate": win, "eval/win_rate_ci_low": win - 0.05, "eval/win_rate_ci_high": win + 0.05}
        won = [{"id": str(i), "prompt_id": str(i), "eval/win_rate": float(i < 100 * win)} for i in range(100)]
        write_run(
            tmp_path,
            f"run-{index}",
            stage="eval",
            summary=PATH_SUMMARY | rate,
            overrides=[f"labeler={label}"],
            config=CONFIG | {"labeler": {"name": label}},
            history=ppo_history(),
            lineage=LINEAGE,
            tables={"samples": SAMPLES, "items": won},
        )
    text, _ = render(tmp_path)
    body = text[text.index("<h2>Arms") : text.index("Every pair of arms")]
    assert body.count('class="badge best"') == 1 and body.count('class="badge tied"') == 1
    assert "not told apart from labeler=detailed." in text
    assert "Keys that differ between the arms (1)" in text and "3e-06" not in text
    assert "7 artifacts in all, 7 of them shared" in text


def test_stages_of_one_path_are_merged(tmp_path):
    write_run(tmp_path, "1", stage="rm", summary={"rm/accuracy": 0.7, "eval/win_rate": 0.1})
    write_run(tmp_path, "2", stage="eval", summary={"eval/win_rate": 0.6, "eval/n": 10})
    text, _ = render(tmp_path)
    assert "60.0%" in text and "70.0%" in text and "<h2>Arms" not in text and "10.0%" not in text


def test_compare_tables_reach_the_page(tmp_path):
    tables = {
        "arms": [{"arm": "cot", "eval/win_rate": 0.61}, {"arm": "base", "eval/win_rate": 0.52}],
        "verdicts": [
            {"first": "cot", "second": "base", "win_rate": 0.6, "ci_low": 0.54, "ci_high": 0.66, "p": 0.01}
        ],
    }
    write_run(tmp_path, "1", stage="compare", summary={"compare/n": 1}, tables=tables)
    text, _ = render(tmp_path)
    assert "cot wins" in text and "54.0–66.0%" in text and "61.0%" in text


@pytest.mark.parametrize(
    "name", ["summary.json", "history.jsonl", "config.yaml", "lineage.json", "meta.json"]
)
def test_missing_files_do_not_break_the_page(tmp_path, name):
    from rlaif.tracking.runs import load_run

    path = write_run(
        tmp_path, "1", summary={"eval/win_rate": 0.6}, history=ppo_history(rows=4), lineage=LINEAGE[:2]
    )
    (path / name).unlink()
    text = render_report([load_run(path)], tmp_path / "out.html", title="t").read_text()
    assert "Runs and configuration" in text and Page(text).open == []


def test_an_empty_run_and_odd_rows_are_tolerated(tmp_path):
    write_run(
        tmp_path,
        "1",
        summary={"eval/win_rate": float("nan"), "x": None},
        history=[{}, {"step": 1, "rl/kl": -1}],
        tables={"samples": [{"policy": "only"}, {"other": 1}], "reliability": [{"n": 0}]},
        lineage=[
            LineageRow("a", "1", (ArtifactKey("b", "2"), ArtifactKey("gone", "3"))),
            LineageRow("b", "2", (ArtifactKey("a", "1"),)),
        ],
    )
    text, _ = render(tmp_path)
    assert "No policy was judged" in text and "only" in text


def test_no_runs_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no finished run"):
        render_report([], tmp_path / "out.html", title="t")


def test_the_same_runs_give_the_same_bytes(tmp_path):
    write_run(tmp_path, "1", summary=PATH_SUMMARY, history=ppo_history(rows=4), lineage=LINEAGE)
    assert render(tmp_path)[0] == render(tmp_path)[0]
