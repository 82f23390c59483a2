"""The label store: reuse, kill -9, several processes, damage."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from labeler_cases import Recorder, options, pairs, scripted, templates, timeless

from rlaif.errors import UserError
from rlaif.labelers import Labeler, LabelStore
from rlaif.labelers.asking import fixed_batches

HERE = Path(__file__).resolve().parent
COUNT = 12
WORKER = """
import json, os, sys, time
from pathlib import Path
from labeler_cases import options, pairs, scripted, templates
from rlaif.labelers import Labeler, LabelStore
from rlaif.records import to_dict

store, log, out, pause = sys.argv[1:5]

class Slow:
    def __init__(self): self.inner = scripted(noise=3.0)
    def identity(self): return self.inner.identity()
    def note(self, kind, prompts):
        with open(log, "a") as stream:
            stream.write("".join(json.dumps([kind, p.user, p.assistant]) + "\\n" for p in prompts))
    def generate(self, prompts, **kwargs):
        time.sleep(float(pause))
        answers = self.inner.generate(prompts, **kwargs)
        self.note("generate", prompts)
        return answers
    def choice_logprobs(self, prompts, choices):
        time.sleep(float(pause))
        answers = self.inner.choice_logprobs(prompts, choices)
        self.note("choices", prompts)
        return answers

Path(out).with_suffix(".ready").touch()
while not (Path(out).parent / "go").exists():
    time.sleep(0.005)
with LabelStore(Path(store), claim_seconds=600.0) as kept:
    labeler = Labeler(Slow(), templates(), options(cot=True), store=kept, progress=None)
    result = labeler.label(pairs(12))
rows = [to_dict(j) | {"seconds": 0} for j in result.judgements]
Path(out).write_text(json.dumps([rows, [to_dict(p) for p in result.preferences], result.counters]))
"""


def worker(folder: Path, name: str, pause: float) -> subprocess.Popen:
    arguments = [
        str(folder / "labels.sqlite"),
        str(folder / f"{name}.log"),
        str(folder / f"{name}.json"),
        str(pause),
    ]
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", WORKER, *arguments], env=environment)


def calls(*logs: Path) -> Counter:
    return Counter(line for log in logs if log.exists() for line in log.read_text().splitlines())


def outcome(folder: Path, name: str) -> list:
    return json.loads((folder / f"{name}.json").read_text())


def direct(store: LabelStore | None):
    labeler = Labeler(scripted(noise=3.0), templates(), options(cot=True), store=store, progress=None)
    return labeler.label(pairs(COUNT))


def test_a_second_run_asks_nothing_and_gives_the_same(tmp_path):
    backend = Recorder(scripted(noise=1.0))
    with LabelStore(tmp_path / "s" / "labels.sqlite", claim_seconds=60.0) as store:
        labeler = Labeler(backend, templates(), options(cot=True), store=store, progress=None)
        first = labeler.label(pairs(5))
        asked = backend.calls
        second = labeler.label(pairs(5))
        assert asked == 5 * 2 * 2 == len(store)
    assert backend.calls == asked
    assert (first.counters["asked"], first.counters["reused"]) == (asked, 0)
    assert (second.counters["asked"], second.counters["reused"]) == (0, asked)
    assert second.counters["tokens_in"] == second.counters["seconds"] == 0
    assert first.counters["tokens_in"] == sum(judgement.tokens_in for judgement in first.judgements)
    assert second.judgements == first.judgements  # to the last bit, seconds included
    assert second.preferences == first.preferences


def test_the_store_changes_no_result(tmp_path):
    with LabelStore(tmp_path / "labels.sqlite", claim_seconds=60.0) as store:
        stored = direct(store)
    bare = direct(None)
    assert timeless(stored.judgements) == timeless(bare.judgements)
    assert stored.preferences == bare.preferences


@pytest.mark.parametrize(
    "change",
    [
        {"backend": scripted(seed=1)},
        {"options": options(cot=True, temperature=0.5)},
        {"options": options(cot=True, max_rationale_tokens=5)},
        {"options": options(cot=True, preamble="detailed")},
    ],
)
def test_every_input_of_an_answer_is_in_its_key(tmp_path, change):
    with LabelStore(tmp_path / "labels.sqlite", claim_seconds=60.0) as store:
        Labeler(scripted(), templates(), options(cot=True), store=store, progress=None).label(pairs(2))
        changed = Labeler(
            change.get("backend", scripted()),
            templates(),
            change.get("options", options(cot=True)),
            store=store,
            progress=None,
        ).label(pairs(2))
    assert changed.counters["asked"] > 0


def test_greedy_labels_are_shared_by_seeds_and_sampled_ones_are_not(tmp_path):
    with LabelStore(tmp_path / "labels.sqlite", claim_seconds=60.0) as store:

        def asked(**changes):
            labeler = Labeler(
                scripted(), templates(), options(cot=True, **changes), store=store, progress=None
            )
            return labeler.label(pairs(2)).counters["asked"]

        assert asked(seed=0) > 0
        assert asked(seed=1) == 0
        assert asked(seed=0, temperature=0.7) > 0
        assert asked(seed=1, temperature=0.7) > 0
        assert asked(seed=1, temperature=0.7) == 0


def test_kill_9_loses_and_repeats_nothing(tmp_path):
    (tmp_path / "go").touch()
    killed = worker(tmp_path, "killed", 0.12)
    deadline = time.time() + 30
    while sum(calls(tmp_path / "killed.log").values()) < 8 and time.time() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)  # into the next batch: its claim is held, its answer is not there
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    with sqlite3.connect(tmp_path / "labels.sqlite") as connection:
        kept = connection.execute("SELECT count(*) FROM answers").fetchone()[0]
    total = COUNT * 2 * 2
    assert 0 < kept < total
    assert not (tmp_path / "killed.json").exists()
    resumed = worker(tmp_path, "resumed", 0.0)
    assert resumed.wait(timeout=30) == 0  # it did not wait for the dead process's claim
    rows, preferences, counters = outcome(tmp_path, "resumed")
    # What was committed was asked once; only a batch that never reached the store may be asked again.
    repeated = calls(tmp_path / "killed.log") & calls(tmp_path / "resumed.log")
    assert sum(repeated.values()) <= options().batch_size
    assert counters["reused"] == kept
    assert counters["asked"] == total - kept == sum(calls(tmp_path / "resumed.log").values())
    expected = direct(None)
    assert rows == json.loads(json.dumps([vars(j) for j in timeless(expected.judgements)]))
    assert preferences == [vars(preference) for preference in expected.preferences]


def test_two_processes_share_the_work(tmp_path):
    workers = [worker(tmp_path, name, 0.05) for name in ("one", "two")]
    while not all((tmp_path / f"{name}.ready").exists() for name in ("one", "two")):
        assert all(process.poll() is None for process in workers)
        time.sleep(0.005)
    (tmp_path / "go").touch()
    assert [process.wait(timeout=60) for process in workers] == [0, 0]
    made = calls(tmp_path / "one.log", tmp_path / "two.log")
    assert set(made.values()) == {1} and len(made) == COUNT * 2 * 2
    one, two = outcome(tmp_path, "one"), outcome(tmp_path, "two")
    assert one[:2] == two[:2]
    assert one[2]["asked"] > 0 and two[2]["asked"] > 0
    assert one[2]["asked"] + two[2]["asked"] == COUNT * 2 * 2


def test_many_processes_can_open_a_new_store_at_once(tmp_path):
    code = (
        "import sys; from pathlib import Path; from rlaif.labelers import LabelStore\n"
        "s = LabelStore(Path(sys.argv[1]), claim_seconds=9.0); s.put('k', {sys.argv[2]: {'a': 1}})"
    )
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    path = str(tmp_path / "labels.sqlite")
    started = [
        subprocess.Popen([sys.executable, "-c", code, path, str(n)], env=environment) for n in range(4)
    ]
    assert [process.wait(timeout=60) for process in started] == [0] * 4
    with LabelStore(Path(path), claim_seconds=9.0) as store:
        assert len(store) == 4


def test_a_live_claim_is_respected_until_it_ends(tmp_path):
    path = tmp_path / "labels.sqlite"
    with LabelStore(path, claim_seconds=600.0) as one, LabelStore(path, claim_seconds=600.0) as two:
        assert one.claim(["a", "b"]).granted
        assert not two.claim(["b", "c"]).granted
        assert two.claim(["c"]).granted
        one.put("k", {"a": {"x": 0.1}})
        one.release(["b"])
        claim = two.claim(["a", "b"])
        assert claim.granted and claim.found == {"a": {"x": 0.1}}
    with LabelStore(path, claim_seconds=-1.0) as expired, LabelStore(path, claim_seconds=600.0) as other:
        assert expired.claim(["d"]).granted
        assert other.claim(["d"]).granted


def test_a_dead_process_on_this_host_holds_nothing_and_another_host_does(tmp_path):
    path = tmp_path / "labels.sqlite"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with LabelStore(path, claim_seconds=600.0) as store:
        store.claim(["a", "b"])
        host = store._holder.split("|")[0]
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE claims SET holder = ? WHERE key = 'a'", (f"{host}|{gone.pid}|x",))
            connection.execute("UPDATE claims SET holder = ? WHERE key = 'b'", (f"elsewhere.{host}|1|x",))
        assert store.claim(["a"]).granted
        assert not store.claim(["b"]).granted


def test_the_first_answer_of_a_key_stays_and_unknown_keys_are_absent(tmp_path):
    with LabelStore(tmp_path / "labels.sqlite", claim_seconds=60.0) as store:
        store.put("k", {"a": {"x": 0.1 + 0.2, "y": [float("-inf"), None]}})
        store.put("k", {"a": {"x": 9.0}, "b": {"x": 2.0}})
        assert store.get(["a", "b", "nowhere"]) == {
            "a": {"x": 0.30000000000000004, "y": [float("-inf"), None]},
            "b": {"x": 2.0},
        }
        many = {f"k{number}": {"n": number} for number in range(1201)}
        store.put("k", many)
        assert store.get(list(many)) == many


def test_a_batch_is_all_or_nothing(tmp_path):
    path = tmp_path / "labels.sqlite"
    with LabelStore(path, claim_seconds=60.0) as store:
        with sqlite3.connect(path) as connection:
            connection.execute(
                "CREATE TRIGGER full BEFORE INSERT ON answers WHEN NEW.key = 'c'"
                " BEGIN SELECT RAISE(ABORT, 'full'); END"
            )
        with pytest.raises(UserError):
            store.put("k", {"a": {}, "b": {}, "c": {}})
        assert store.get(["a", "b", "c"]) == {}


def filled(path: Path) -> None:
    with LabelStore(path, claim_seconds=60.0) as store:
        store.put("k", {f"{number:064d}": {"text": "x" * 200} for number in range(200)})


@pytest.mark.parametrize("damage", ["garbage", "truncated", "page", "value"])
def test_a_damaged_store_is_one_sentence_that_names_the_file(tmp_path, damage):
    path = tmp_path / "labels.sqlite"
    filled(path)
    data = bytearray(path.read_bytes())
    if damage == "garbage":
        data = bytearray(b"not a database, only some words. " * 40)
    elif damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "page":
        data[4096 * 3 : 4096 * 4] = bytes(range(256)) * 16
    else:
        at = data.index(b"xxxx")
        data[at : at + 4] = b"yyyy"
    path.write_bytes(data)
    said = r"labels\.sqlite: the label store is damaged"
    with pytest.raises(UserError, match=said) as caught, LabelStore(path, claim_seconds=60.0) as store:
        store.get([f"{number:064d}" for number in range(200)])
    assert "\n" not in str(caught.value) and "run again" in str(caught.value)
    assert path.read_bytes() == bytes(data)  # nothing is deleted or written over


def test_a_broken_page_is_found_on_opening_before_anything_is_asked(tmp_path):
    path = tmp_path / "labels.sqlite"
    filled(path)
    data = bytearray(path.read_bytes())
    data[4096 * 3 : 4096 * 4] = bytes(range(256)) * 16
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        LabelStore(path, claim_seconds=60.0)


def test_a_foreign_database_is_left_alone(tmp_path):
    path = tmp_path / "labels.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"labels\.sqlite: not a label store"):
        LabelStore(path, claim_seconds=60.0)
    assert path.read_bytes() == before


def test_batches_do_not_depend_on_what_is_stored(tmp_path):
    """A batch that misses one answer is computed whole, and the stored answers of it are kept."""
    with LabelStore(tmp_path / "labels.sqlite", claim_seconds=60.0) as store:
        backend = Recorder(scripted())
        labeler = Labeler(backend, templates(), options(batch_size=4), store=store, progress=None)
        whole = labeler.label(pairs(4))
        assert backend.batches == [4, 4]
        with sqlite3.connect(tmp_path / "labels.sqlite") as connection:
            key = connection.execute("SELECT key FROM answers LIMIT 1").fetchone()[0]
            connection.execute("DELETE FROM answers WHERE key = ?", (key,))
        backend.batches.clear()
        again = labeler.label(pairs(4))
        assert backend.batches == [4]
        assert (again.counters["asked"], again.counters["reused"]) == (4, 4)
    assert timeless(again.judgements) == timeless(whole.judgements)


def test_fixed_batches_keep_groups_together():
    items = list(range(9))
    groups = [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert fixed_batches(items, groups, 3) == [[0, 1], [2, 3], [4, 5], [6, 7, 8]]
    assert fixed_batches(items, groups, 4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert fixed_batches(items, [0] * 9, 4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert fixed_batches([], [], 4) == []


def test_a_process_takes_over_what_a_killed_neighbour_had_claimed(tmp_path):
    workers = [worker(tmp_path, name, 0.1) for name in ("killed", "other")]
    while not all((tmp_path / f"{name}.ready").exists() for name in ("killed", "other")):
        assert all(process.poll() is None for process in workers)
        time.sleep(0.005)
    (tmp_path / "go").touch()
    deadline = time.time() + 30
    while sum(calls(tmp_path / "killed.log").values()) < 12 and time.time() < deadline:
        time.sleep(0.005)  # its first batch is stored with its verdicts, and it is at the next
    workers[0].send_signal(signal.SIGKILL)
    workers[0].wait()
    assert workers[1].wait(timeout=60) == 0
    made = calls(tmp_path / "killed.log", tmp_path / "other.log")
    # Only the rationales and verdicts of the batch that died with its process may have been asked twice.
    assert len(made) == COUNT * 2 * 2 and sum(made.values()) <= len(made) + 2 * options().batch_size
    rows, preferences, counters = outcome(tmp_path, "other")
    assert counters["asked"] + counters["reused"] == COUNT * 2 * 2 and counters["reused"] > 0
    expected = direct(None)
    assert rows == json.loads(json.dumps([vars(j) for j in timeless(expected.judgements)]))
    assert preferences == [vars(preference) for preference in expected.preferences]


def test_a_living_holder_keeps_its_claim_and_one_of_another_host_that_died_loses_it(tmp_path, monkeypatch):
    path = tmp_path / "labels.sqlite"
    with LabelStore(path, claim_seconds=0.4) as one, LabelStore(path, claim_seconds=0.4) as two:
        assert one.claim(["a"]).granted
        time.sleep(1.0)
        refused = two.claim(["a"])
        assert not refused.granted, "renewed: it is computing still"
        assert refused.held.startswith(f"process {os.getpid()} on {socket.gethostname()} (for another 0 s")
    monkeypatch.setattr(socket, "gethostname", lambda: "a-container")
    dead = LabelStore(path, claim_seconds=0.4)
    assert dead.claim(["b"]).granted
    dead._closed.set()  # as kill -9 ends it: no more renewals, its claim stays behind
    monkeypatch.undo()
    with LabelStore(path, claim_seconds=0.4) as next_one:
        assert not next_one.claim(["b"]).granted
        time.sleep(0.6)
        assert next_one.claim(["b"]).granted


def test_a_wait_for_another_process_is_said(tmp_path, caplog):
    path = tmp_path / "labels.sqlite"
    with LabelStore(path, claim_seconds=0.3) as store:
        labeler = Labeler(scripted(), templates(), options(), store=store, progress=None)
        labeler.label(pairs(1))
        keys = [row[0] for row in store._connection.execute("SELECT key FROM answers")]
        store._connection.execute("DELETE FROM answers")
        rows = [(key, "elsewhere|7|x", time.time() + 0.3) for key in keys]
        store._connection.executemany("INSERT INTO claims VALUES (?, ?, ?)", rows)
        assert labeler.label(pairs(1)).counters["asked"] == len(keys)
    assert caplog.text.count("waiting for answers that process 7 on elsewhere") == 1
