"""The dialogue tasks: splitting dialogues, sides, splits by conversation, broken rows, the hub's layout."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.data.files.hh import ASSISTANT, HUMAN, hh_rows, load_hh, split_dialogue
from rlaif.data.files.readers import HubPart, Row
from rlaif.data.files.rows import Drops, Splitting
from rlaif.errors import UserError

FIXTURES = Path(__file__).parents[1] / "fixtures"
HUB = HubPart("train", None)
SPLITTING = {
    "test_fraction": 0.25,
    "validation_fraction": 0.25,
    "gold_fraction": 0.25,
    "max_rows": None,
    "seed": 0,
}


def load(*paths, hub=HUB, name="harmless", **changes):
    splitting = Splitting(**{**SPLITTING, **changes})
    return load_hh(name=name, paths=[str(path) for path in paths], hub=hub, splitting=splitting)


def source(name: str) -> list[dict]:
    return [json.loads(line) for line in (FIXTURES / name).read_text(encoding="utf-8").splitlines()]


def prompts(task) -> list:
    return [*task.train, *task.validation, *task.test]


def write(path: Path, rows: list[dict]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def dialogue(*turns: str) -> str:
    """Turns of human and assistant by turns, as the data set writes them."""
    return "".join(f"{(HUMAN, ASSISTANT)[i % 2]} {turn}" for i, turn in enumerate(turns))


said = st.text(alphabet="abHA:\n .é\u2028", max_size=12).filter(
    lambda t: HUMAN not in t and ASSISTANT not in t
)


@given(history=st.lists(said, min_size=1, max_size=5).filter(lambda h: len(h) % 2), good=said, bad=said)
def test_a_split_dialogue_joins_to_the_very_texts(history, good, bad):
    chosen, rejected = dialogue(*history, good), dialogue(*history, bad)
    split = split_dialogue(chosen, rejected)
    assert split is not None
    assert (split.prefix + split.chosen, split.prefix + split.rejected) == (chosen, rejected)
    assert split.prefix == dialogue(*history) + ASSISTANT
    assert split.prompt == dialogue(*history).strip()
    # The answers never leak into what the policy is shown, however alike they begin.
    assert (split.chosen, split.rejected) == (f" {good}", f" {bad}")


@given(a=st.text(max_size=40), b=st.text(max_size=40))
def test_any_two_texts_are_split_losslessly_or_not_at_all(a, b):
    for chosen, rejected in ((a, b), (HUMAN + a + ASSISTANT + b, HUMAN + a + ASSISTANT + a)):
        split = split_dialogue(chosen, rejected)
        if split is not None:
            assert (split.prefix + split.chosen, split.prefix + split.rejected) == (chosen, rejected)
            assert split.prompt and split.prefix.endswith(ASSISTANT)


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("no turn", "none"),
        (dialogue("Hi", "Yes"), dialogue("Ho", "Yes")),  # no shared human turn
        (
            dialogue("Hi", "Yes", "And?", "So"),
            dialogue("Hi", "No", "And?", "So"),
        ),  # parts before the last turn
        (dialogue("Hi", "Yes"), dialogue("Hi", "Yes", "And?", "So")),  # one goes on
        (f"{ASSISTANT} a", f"{ASSISTANT} b"),  # nothing was asked
        ("", ""),
    ],
)
def test_dialogues_that_part_earlier_are_no_pair(chosen, rejected):
    assert split_dialogue(chosen, rejected) is None
    assert split_dialogue(rejected, chosen) is None


def test_rows_by_hand():
    # The answers start alike ("I th"), so the shared text runs past the turn and must be cut back to it.
    history = ("Hi", "Hello.", "Tea?")
    row = Row(
        "line 1",
        {
            "chosen": dialogue(*history, "I think so."),
            "rejected": dialogue(*history, "I thank you."),
            "id": 7,
        },
    )
    drops = Drops()
    (found,) = hh_rows([row], path="f", seed=0, drops=drops)
    assert drops.counts.total() == 0
    assert found.values["prompt"] == "Human: Hi\n\nAssistant: Hello.\n\nHuman: Tea?"
    label = found.values["label"]
    assert {found.values["response_a"]: label, found.values["response_b"]: 1.0 - label} == {
        "I think so.": 1.0,
        "I thank you.": 0.0,
    }


def test_the_chosen_side_is_balanced_and_follows_the_seed():
    rows = [
        Row(str(i), {"chosen": dialogue(str(i), "yes"), "rejected": dialogue(str(i), "no")})
        for i in range(1000)
    ]
    labels = [row.values["label"] for row in hh_rows(rows, path="f", seed=0, drops=Drops())]
    bound = 4 * 0.5 / 1000**0.5
    assert abs(sum(labels) / 1000 - 0.5) < bound
    assert not abs(sum(1.0 for _ in labels) / 1000 - 0.5) < bound  # chosen always first would be seen
    assert labels != [row.values["label"] for row in hh_rows(rows, path="f", seed=1, drops=Drops())]
    assert labels == [row.values["label"] for row in hh_rows(rows, path="g", seed=0, drops=Drops())]


@pytest.mark.parametrize(("name", "file"), [("helpful", "hh.jsonl"), ("harmless", "hh_harmless.jsonl")])
def test_the_fixtures_give_every_part_of_a_task(name, file):
    """With the fractions that conf/task ships."""
    task = load(FIXTURES / file, name=name, test_fraction=0.1, validation_fraction=0.05, gold_fraction=0.1)
    assert task.name == name and len(source(file)) >= 24
    assert task.train and task.validation and task.test and task.pairs and task.gold_pairs
    assert len(task.pairs) + len(task.gold_pairs) == len(source(file))
    assert all(prompt.reference is None for prompt in prompts(task))
    restored = set()
    for pair in (*task.pairs, *task.gold_pairs):
        assert pair.gold in (0.0, 1.0) and pair.gold_source == "human" and pair.origin == "dataset"
        sides = (pair.response_a, pair.response_b)
        better, worse = sides if pair.gold == 1.0 else sides[::-1]
        turn = f"\n\n{pair.prompt}{ASSISTANT} "
        restored.add((turn + better, turn + worse))
    assert restored == {(row["chosen"], row["rejected"]) for row in source(file)}
    assert {pair.gold for pair in task.gold_pairs} == {0.0, 1.0}


def test_gold_and_training_pairs_share_no_conversation():
    """Rows that open alike are turns of one conversation: one split, on one side of gold and training."""
    task = load(FIXTURES / "hh.jsonl")
    opening = {prompt.id: prompt.prompt.split(ASSISTANT)[0] for prompt in prompts(task)}
    parts = [{opening[p.id] for p in split} for split in (task.train, task.validation, task.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) < len(opening)
    gold = {opening[pair.prompt_id] for pair in task.gold_pairs}
    assert gold == parts[2] and gold.isdisjoint(opening[pair.prompt_id] for pair in task.pairs)


def test_rows_that_part_earlier_are_dropped_and_counted(tmp_path):
    early = {"chosen": dialogue("Hi", "Yes", "And?", "So"), "rejected": dialogue("Hi", "No", "And?", "So")}
    same = {"chosen": dialogue("Hi", "Yes"), "rejected": dialogue("Hi", " Yes ")}
    path = write(tmp_path / "rows.jsonl.gz", [early, *source("hh_harmless.jsonl"), early, same])
    task = load(path)
    assert task.notes["diverging_rows_dropped"] == 2 and task.notes["identical_pairs_dropped"] == 1
    assert len(task.pairs) + len(task.gold_pairs) == len(source("hh_harmless.jsonl"))
    assert task.gold_pairs == load(FIXTURES / "hh_harmless.jsonl").gold_pairs


def test_several_files_are_one_task_and_fewer_rows_a_subset(tmp_path):
    rows = source("hh.jsonl")
    parts = [write(tmp_path / "a.jsonl", rows[:10]), write(tmp_path / "b.jsonl", rows[10:])]
    whole = load(FIXTURES / "hh.jsonl")
    assert load(*parts) == whole
    few = load(FIXTURES / "hh.jsonl", max_rows=9)
    assert len(few.pairs) + len(few.gold_pairs) == 9
    for part in ("train", "validation", "test", "pairs", "gold_pairs"):
        assert set(getattr(few, part)) <= set(getattr(whole, part))
    assert set(load(FIXTURES / "hh.jsonl", seed=1).test) != set(whole.test)


GOOD = {"chosen": dialogue("Hi", "Yes"), "rejected": dialogue("Hi", "No")}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (json.dumps(GOOD) + '\n{"chosen": "x"}', ["rows.jsonl, line 2", "'chosen' and 'rejected'"]),
        (json.dumps(GOOD) + '\n\n{"chosen": "x", "rejected": 3}', ["rows.jsonl, line 3", "as text"]),
        (json.dumps(GOOD) + '\n{"chosen": ', ["rows.jsonl, line 2: not valid JSON"]),
        ('{"prompt": "x", "label": 1}', ["rows.jsonl, line 1", "'chosen' and 'rejected'"]),
        ('{"chosen": "x", "rejected": "y"}', ["in no row", "task=custom task.path="]),
        ("", ["rows.jsonl has no rows"]),
    ],
)
def test_a_broken_file_is_one_sentence_with_its_place(text, parts, tmp_path):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(UserError) as caught:
        load(tmp_path / "rows.jsonl")
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    assert all(part in message for part in parts), message


@pytest.fixture
def local_hub(monkeypatch, tmp_path):
    """The real loader over a folder in the published layout, where a name would stand for the hub's copy."""
    load_dataset, asked = datasets.load_dataset, []

    def local(name, config, **options):
        asked.append((name, config, options))
        return load_dataset(str(tmp_path / name), config, cache_dir=str(tmp_path / "cache"), **options)

    monkeypatch.setattr(datasets, "load_dataset", local)
    return tmp_path, asked


def test_the_hub_is_read_by_folder_and_split(local_hub):
    root, asked = local_hub
    rows = source("hh_harmless.jsonl")
    for folder, part in (("harmless-base", rows), ("helpful-base", source("hh.jsonl"))):
        write(root / "some-org/dialogues" / folder / "train.jsonl.gz", part[:20])
        write(root / "some-org/dialogues" / folder / "test.jsonl.gz", part[20:])
    task = load("some-org/dialogues", hub=HubPart("train", "harmless-base"))
    assert task == load(write(root / "train.jsonl", rows[:20]))
    both = load("some-org/dialogues", hub=HubPart("train+test", "harmless-base"))
    assert both == load(FIXTURES / "hh_harmless.jsonl")
    assert asked[0] == ("some-org/dialogues", None, {"split": "train", "data_dir": "harmless-base"})


def test_an_unreachable_hub_names_the_way_out():
    """The hub client itself fails here, since tests run offline."""
    with pytest.raises(UserError) as caught:
        load("nobody-at-all/no-such-dialogues", hub=HubPart("train", "harmless-base"))
    message = str(caught.value)
    assert (
        "task.path=nobody-at-all/no-such-dialogues is not a file" in message and "task.path=FILE" in message
    )
    assert "\n" not in message
