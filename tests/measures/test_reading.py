"""Samples are chosen by rules and marked by rules: against plain loops and strings worked out by hand."""

from __future__ import annotations

import functools
import random
import re

import pytest
from jobs import CODE

from rlaif.records import Comparison, Judgement, Pair, Preference
from rlaif.stages.common.measures.markers import MARKERS, markers_of
from rlaif.stages.common.measures.reading import (
    LABEL_RULES,
    POLICY_RULES,
    Case,
    Rule,
    chosen,
    label_cases,
    marked,
    policy_cases,
    rationale_texts,
    reading_rows,
)
from rlaif.stages.common.measures.refusals import Refusals
from rlaif.stages.common.measures.text import words_changed

REFUSALS = Refusals.load(CODE / "conf" / "templates" / "_common" / "refusals.txt")
PROMPT = "the quick brown fox jumps over the lazy dog near the old mill"


@pytest.mark.parametrize(
    "response, finished, wanted",
    [
        ("", False, ("empty",)),
        (" \u200b\n", True, ("empty",)),
        ("An animal leaps.", True, ()),
        ("An animal leaps.", None, ()),
        ("An animal leaps", False, ("truncated",)),
        # 4-grams: 7, all of them in the prompt.
        ("The quick brown fox jumps over the lazy dog", True, ("copies",)),
        # Of 5 4-grams 4 are in the prompt: 80%. Of 5 in the next one 3: 60%.
        ("quick brown fox jumps over the lazy cat", True, ("copies",)),
        ("quick brown fox jumps over the tired cat", True, ()),
        ("brown fox jumps", True, ()),  # too few words to tell
        # 3-grams: a b a, b a b, a b a, b a b, a b a, b a b: 2 of 6 distinct.
        ("a b a b a b a b", True, ("repeats",)),
        # 6 of 9 distinct (67%), then 6 of 10 (60%).
        ("a b c d e f a b c d e", True, ()),
        ("a b c d e f a b c d e f", True, ("repeats",)),
        ("a b a b a b a", True, ()),  # too few words to tell
        ("I\u2019m sorry, but I cannot help with that", False, ("truncated", "refuses")),
    ],
)
def test_markers_hold_by_their_rules(response: str, finished: bool | None, wanted: tuple[str, ...]) -> None:
    assert markers_of(response, PROMPT, REFUSALS, finished=finished) == wanted
    assert set(wanted) <= set(MARKERS)


def test_a_refusal_is_what_the_refusal_rate_counts_as_one() -> None:
    """The phrases that users extend (tests/stages/test_safety.py): one rule for the rate and for the marker."""
    own = Refusals(re.compile("i would rather not"))
    for text, wanted in (("I'd rather not.", ("refuses",)), ("I cannot do that.", ())):
        assert markers_of(text, PROMPT, own, finished=True) == wanted
    assert markers_of("I cannot do that.", PROMPT, REFUSALS, finished=True) == ("refuses",)


def test_words_changed_is_the_edit_distance() -> None:
    def oracle(a: tuple[str, ...], b: tuple[str, ...]) -> int:
        @functools.cache
        def cost(i: int, j: int) -> int:
            if not i or not j:
                return i + j
            same = cost(i - 1, j - 1) + (a[i - 1] != b[j - 1])
            return min(same, cost(i - 1, j) + 1, cost(i, j - 1) + 1)

        return cost(len(a), len(b))

    draw = random.Random(0)
    for _ in range(200):
        a, b = (tuple(draw.choices("abc", k=draw.randrange(8))) for _ in range(2))
        assert words_changed(" ".join(a), " ".join(b)) == oracle(a, b)
    assert words_changed("Red green, blue", "red blue!") == 1


def case(
    name: str, first: str = "x", second: str = "x", margin: float | None = None, **verdicts: float
) -> Case:
    return marked(Case(name, PROMPT, first, second, verdicts, margin), REFUSALS)


def names(found: list[tuple[Rule, list[Case]]]) -> dict[str, list[str]]:
    return {rule.name: [one.id for one in own] for rule, own in found}


def test_each_rule_takes_its_highest_and_no_sample_twice() -> None:
    draw = random.Random(1)
    for _ in range(60):
        cases = [
            Case(
                f"{draw.randrange(10**6)}",
                PROMPT,
                " ".join(draw.choices("abcdefgh", k=draw.randrange(9))),
                " ".join(draw.choices("abcdefgh", k=draw.randrange(9))),
                {k: draw.choice([0, 0.2, 0.5, 0.8, 1]) for k in ("judge", "labeler") if draw.random() < 0.8},
                draw.choice([None, -2.0, -1.0, 0.0, 1.0, 2.0]),
            )
            for _ in range(draw.randrange(25))
        ]
        cases = [marked(one, REFUSALS) for one in {one.id: one for one in cases}.values()]
        count = draw.randrange(1, 5)
        wanted: dict[str, list[str]] = {}
        free = list(cases)
        for rule in POLICY_RULES:
            for _ in range(count):
                best = None
                for one in free:
                    score = rule.score(one)
                    if score is None:
                        continue
                    if best is None or score > best[0] or (score == best[0] and one.id < best[1].id):
                        best = (score, one)
                if best:
                    wanted.setdefault(rule.name, []).append(best[1].id)
                    free.remove(best[1])
        assert names(chosen(cases, POLICY_RULES, count)) == wanted
        assert names(chosen(list(reversed(cases)), POLICY_RULES, count)) == wanted, (
            "whatever the file's order"
        )


def test_the_rules_for_policies() -> None:
    cases = [
        case("judge against reward", judge=0.1, margin=0.5),
        case("more so", judge=0.4, margin=2.0),
        case("of one mind", judge=0.9, margin=5.0),
        case("no verdict", margin=5.0),
        case("labeler against judge", judge=0.2, labeler=0.9),
        case("labeler, a tie", judge=0.5, labeler=1.0),
        case("marked", first="i cannot help", second="fine sir"),
        case("both marked", first="i cannot help him", second="i cannot help"),
        case("changed", first="one two three", second="four five"),
    ]
    assert names(chosen(cases, POLICY_RULES, 3)) == {
        "Reward against judge": ["more so", "judge against reward"],
        "Labeler against judge": ["labeler against judge"],
        "Marked": ["marked"],
        "Most changed": ["changed", "both marked"],
    }
    assert chosen([case("same", judge=0.9, labeler=0.9)], POLICY_RULES, 3) == []


def test_comparisons_become_cases_with_what_is_known_of_them() -> None:
    def comparison(name: str, p: float | None) -> Comparison:
        outcome = "unparsed" if p is None else "win" if p > 0.5 else "loss"
        return Comparison(name, name, PROMPT, "new", "old", outcome, p, 1, 1, reference="ref")

    facts = {
        "a": {"finished": [False, True], "rewards": [1.5, 1.0], "p_labeler": 0.7, "rationale": "since"},
        "b": {"finished": [True, True], "rewards": None, "p_labeler": None, "rationale": ""},
    }
    a, b, c = policy_cases(
        [comparison("a", 0.2), comparison("b", None), comparison("c", 0.9)], facts, REFUSALS
    )
    assert (a.margin, a.verdicts, a.finished, a.rationale) == (
        0.5,
        {"judge": 0.2, "labeler": 0.7},
        (False, True),
        "since",
    )
    assert (b.margin, b.verdicts) == (None, {}) and (c.margin, c.verdicts) == (None, {"judge": 0.9})
    (row,) = reading_rows([a], POLICY_RULES, ("Policy", "Baseline"))
    assert row["rule"] == "Reward against judge" and row["marks"] == [["truncated"], []]
    assert (row["responses"], row["heads"], row["margin"]) == (["new", "old"], ["Policy", "Baseline"], 0.5)


def test_labelled_pairs_are_chosen_by_disagreement_with_gold() -> None:
    def pair(name: str, gold: float | None) -> Pair:
        source = None if gold is None else "human"
        return Pair(name, name, PROMPT, "a", "b", "dataset", gold, source, subset="chat" if gold else None)

    golds = {"wrong": 1.0, "less wrong": 0.0, "right": 1.0, "unread": 1.0, "no gold": None}
    values = {"wrong": 0.1, "less wrong": 0.7, "right": 0.9, "unread": None, "no gold": 0.1}
    preferences = [
        Preference(name, p, p, p, 1, "unparsed" if p is None else "ok", "logprob")
        for name, p in values.items()
    ]
    judgements = [
        Judgement("wrong", "ab", 0, "", "ok", "logprob", 0.1, text="a is odd"),
        Judgement("wrong", "ba", 0, "", "ok", "logprob", 0.1, text="b is fine"),
        Judgement("right", "ab", 0, "", "ok", "rule", 1.0, text="an empty response loses"),
    ]
    told = rationale_texts(judgements)
    assert told == {"wrong": "(as shown here) a is odd\n(in the other order) b is fine"}
    rows = reading_rows(
        label_cases([pair(*one) for one in golds.items()], preferences, told, REFUSALS),
        LABEL_RULES,
        ("a", "b"),
    )
    assert [row["id"] for row in rows] == ["wrong", "less wrong"]
    assert rows[0]["verdicts"] == {"labeler": 0.1, "gold": 1.0} and rows[0]["rationale"] == told["wrong"]
    assert rows[0]["origin"] == "human chat" and rows[1]["rationale"] == ""
