"""The TL;DR task: three published schemas, gold by the two-sided slider, references, broken rows."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rlaif.data.files.readers import PARQUET_BRANCH, HubPart
from rlaif.data.files.rows import Splitting
from rlaif.data.files.tldr import load_tldr
from rlaif.errors import UserError

FIXTURES = Path(__file__).parents[1] / "fixtures"
COMPARISONS, POSTS = FIXTURES / "tldr_comparisons.jsonl", FIXTURES / "tldr_posts.jsonl"
HUB = HubPart("train", None)
SPLITTING = {
    "test_fraction": 0.25,
    "validation_fraction": 0.25,
    "gold_fraction": 0.25,
    "max_rows": None,
    "seed": 0,
}


def load(*paths, confidence=(1, 2, 8, 9), hub=HUB, **changes):
    splitting = Splitting(**{**SPLITTING, **changes})
    return load_tldr(
        paths=[str(path) for path in paths], hub=hub, gold_confidence=confidence, splitting=splitting
    )


def source(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prompts(task) -> list:
    return [*task.train, *task.validation, *task.test]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def about_posts() -> list[dict]:
    return [row for row in source(COMPARISONS) if row["info"]["post"] is not None]


def as_pair(row: dict) -> tuple[str, str, str, float]:
    """(prompt, first, second, gold) of a published comparison, spelt out once more."""
    info, (first, second) = row["info"], (one["text"].strip() for one in row["summaries"])
    prompt = f"SUBREDDIT: r/{info['subreddit']}\n\nTITLE: {info['title']}\n\nPOST: {info['post']}"
    return prompt, first, second, 1.0 if row["choice"] == 0 else 0.0


def pairs(found) -> set[tuple[str, str, str, float]]:
    return {(pair.prompt, pair.response_a, pair.response_b, pair.gold) for pair in found}


def test_comparisons_are_read_as_published():
    task = load(COMPARISONS)
    assert task.name == "tldr" and task.notes["news_rows_dropped"] == 1
    kept = len(task.pairs) + len(task.gold_pairs)
    assert kept == len(about_posts()) - task.notes["untrusted_gold_pairs_dropped"]
    assert pairs((*task.pairs, *task.gold_pairs)) <= {as_pair(row) for row in about_posts()}
    assert pairs(load(COMPARISONS, gold_fraction=0.0).pairs) == {as_pair(row) for row in about_posts()}
    assert {pair.gold for pair in task.gold_pairs} == {0.0, 1.0}


def test_the_fixtures_give_every_part_of_a_task():
    """With the fractions that conf/task ships."""
    task = load(COMPARISONS, test_fraction=0.15, validation_fraction=0.05, gold_fraction=0.15)
    assert task.train and task.validation and task.test and task.pairs and task.gold_pairs
    assert any(p.reference for p in task.train) and any(p.reference for p in task.validation)
    assert len(source(COMPARISONS)) >= 24 and len(source(POSTS)) >= 24


def sure_on_both_sides(confidence: tuple[int, ...]) -> bool:
    """Gold is every comparison at an end of the slider, of either side, and no other."""
    gold = load(COMPARISONS, confidence=confidence, gold_fraction=1.0).gold_pairs
    wanted = {as_pair(row) for row in about_posts() if abs(row["extra"]["confidence"] - 5) >= 3}
    return pairs(gold) == wanted and {pair.gold for pair in gold} == {0.0, 1.0}


def test_gold_is_what_people_were_sure_of_on_both_sides_of_the_slider():
    assert sure_on_both_sides((1, 2, 8, 9))
    for wrong in ((1, 2), (8, 9), (1, 9), (1, 2, 3, 8, 9), tuple(range(1, 10))):
        assert not sure_on_both_sides(wrong), wrong


def test_unsure_pairs_of_held_out_posts_are_neither_gold_nor_trained_on():
    task = load(COMPARISONS, gold_fraction=0.5)
    unsure = [row for row in about_posts() if row["extra"]["confidence"] not in (1, 2, 8, 9)]
    trained = {pair.prompt for pair in task.pairs}
    missing = [row for row in unsure if as_pair(row)[0] not in trained]
    assert task.notes["untrusted_gold_pairs_dropped"] == len(missing) > 0
    assert trained & {as_pair(row)[0] for row in unsure}  # the others train the reward model, as in the paper
    assert trained.isdisjoint(pair.prompt for pair in task.gold_pairs)


def test_a_comparison_without_confidence_is_trained_on_only(tmp_path):
    rows = about_posts()
    del rows[0]["extra"]
    rows[1]["extra"] = {}
    rows[2]["extra"] = {"confidence": None}
    path = write(tmp_path / "rows.jsonl", rows)
    assert pairs(load(path, gold_fraction=1.0).gold_pairs).isdisjoint(as_pair(row) for row in rows[:3])
    assert pairs(load(path, gold_fraction=0.0).pairs) == {as_pair(row) for row in rows}


def test_references_are_the_authors_summaries():
    task = load(COMPARISONS)
    written = {
        as_pair(row)[0]: one["text"].strip()
        for row in about_posts()
        for one in row["summaries"]
        if one["policy"] == "ref"
    }
    found = {prompt.prompt: prompt.reference for prompt in prompts(task)}
    assert {text: reference for text, reference in found.items() if reference} == written
    assert 0 < len(written) < len(found)


def test_posts_alone_give_prompts_with_references():
    task = load(POSTS)
    assert not task.pairs and not task.gold_pairs
    assert {prompt.reference for prompt in prompts(task)} == {row["label"] for row in source(POSTS)}


def test_a_post_has_one_text_and_one_split_whatever_its_file(tmp_path):
    """The published prompts have single newlines, the comparisons bare fields; both become the same prompt."""
    both = load(COMPARISONS, POSTS)
    assert len(prompts(both)) == len(source(POSTS)) == len({prompt.prompt for prompt in prompts(both)})
    assert all(prompt.reference for prompt in prompts(both))
    columns = [{**row["info"], "summary": row["summaries"][0]["text"]} for row in about_posts()]
    by_column = load(write(tmp_path / "posts.jsonl", columns))
    for part in ("train", "validation", "test"):
        wanted = {prompt.prompt for prompt in getattr(both, part)}
        assert {prompt.prompt for prompt in getattr(by_column, part)} == wanted
        assert {prompt.prompt for prompt in getattr(load(COMPARISONS), part)} == wanted
    test = {prompt.prompt for prompt in both.test}
    assert test >= {pair.prompt for pair in both.gold_pairs}
    assert test.isdisjoint(pair.prompt for pair in both.pairs)


@pytest.mark.parametrize("target", ["label", "summary", "completion"])
def test_prompts_of_every_published_copy(target, tmp_path):
    rows = [
        {"prompt": row["prompt"].replace("\n", "\n\n"), target: f" {row['label']}"} for row in source(POSTS)
    ]
    assert {p.prompt: p.reference for p in prompts(load(write(tmp_path / "p.jsonl", rows)))} == {
        p.prompt: p.reference for p in prompts(load(POSTS))
    }


def test_every_format_reads_the_same(tmp_path):
    rows = source(COMPARISONS)
    whole = load(COMPARISONS)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(COMPARISONS.read_bytes()))
    (tmp_path / "c.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    for name in ("c.jsonl.gz", "c.json", "c.parquet"):
        assert load(tmp_path / name) == whole, name


def test_fewer_rows_are_a_subset():
    whole = load(COMPARISONS, POSTS)
    few = load(COMPARISONS, POSTS, max_rows=20)
    for part in ("pairs", "gold_pairs"):
        assert pairs(getattr(few, part)) < pairs(getattr(whole, part))
        # A pair's reference may come from a row beyond the limit.
        known = {pair.id: pair.reference for pair in getattr(whole, part)}
        assert all(pair.reference in (None, known[pair.id]) for pair in getattr(few, part))
    for part in ("train", "validation", "test"):
        assert {p.prompt for p in getattr(few, part)} <= {p.prompt for p in getattr(whole, part)}


def changed(**changes) -> dict:
    row = copy.deepcopy(about_posts()[0])
    row["info"] |= changes.pop("info", {})
    return row | changes


@pytest.mark.parametrize(
    ("bad", "parts"),
    [
        (changed(choice=2), ["'choice' is 2", "0 or 1"]),
        (changed(choice=True), ["'choice' is True"]),
        (changed(choice=None), ["'choice' is None"]),
        (changed(summaries=[{"text": "one"}]), ["'summaries' must hold two"]),
        (changed(summaries=["one", "two"]), ["'summaries' must hold objects, not text"]),
        (changed(summaries=[{"text": "one"}, {"policy": "sup"}]), ["'text' must hold text, not nothing"]),
        (changed(info={"post": None}), ["'post' must hold text"]),
        (changed(info={"title": 3}), ["'title' must hold text, not a number"]),
        (changed(extra={"confidence": 0}), ["extra.confidence is 0", "positions 1 to 9"]),
        (changed(extra={"confidence": "9"}), ["extra.confidence is '9'"]),
        (changed(extra=9), ["'extra' must hold objects"]),
    ],
)
def test_a_broken_comparison_is_named_with_its_line(bad, parts, tmp_path):
    path = write(tmp_path / "rows.jsonl", [about_posts()[0], bad])
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert "rows.jsonl, line 2: " in message and "\n" not in message
    assert all(part in message for part in parts), message


def test_other_mistakes_say_what_to_write(tmp_path):
    with pytest.raises(
        UserError, match=r"other\.jsonl has the columns text; task=tldr reads info, summaries"
    ):
        load(write(tmp_path / "other.jsonl", [{"text": "x"}]))
    with pytest.raises(UserError, match=r"p\.jsonl, line 1: column 'prompt' must read SUBREDDIT"):
        load(write(tmp_path / "p.jsonl", [{"prompt": "Summarise this.", "label": "x"}]))
    with pytest.raises(UserError, match=r"no row is about a Reddit post"):
        load(
            write(
                tmp_path / "news.jsonl", [row for row in source(COMPARISONS) if row["info"]["post"] is None]
            )
        )
    for wrong in ((), (0, 9), (10,)):
        with pytest.raises(UserError, match=r"task\.gold_confidence=.*from 1 to 9, such as \[1,2,8,9\]"):
            load(COMPARISONS, confidence=wrong)


def test_a_data_set_published_as_a_script_is_read_from_the_hubs_parquet_copy(monkeypatch, tmp_path):
    """The loader refuses the script itself (its real message); no code of the data set ever runs."""
    load_dataset, asked = datasets.load_dataset, []
    folder = tmp_path / "some-org" / "feedback"
    folder.mkdir(parents=True)
    (folder / "feedback.py").write_text("raise SystemExit('a data set must not run code')\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(source(COMPARISONS)), tmp_path / "train.parquet")

    def local(name, config, *, revision=None, **options):
        asked.append((config, revision))
        if revision is None:
            return load_dataset(str(folder / "feedback.py"), config, **options)
        files = {"train": str(tmp_path / "train.parquet")}
        return load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"), **options)

    monkeypatch.setattr(datasets, "load_dataset", local)
    assert load("some-org/feedback:comparisons") == load(COMPARISONS)
    assert asked == [("comparisons", None), ("comparisons", PARQUET_BRANCH)]
