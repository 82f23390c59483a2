"""The docs task on package trees built for the test."""

from __future__ import annotations

import dataclasses
import itertools
import random
import subprocess
import sys

import pytest

from rlaif.data.docs import task as docs
from rlaif.data.docs.constructed import corrupt, truncate
from rlaif.data.docs.docstrings import SentenceFilter, content_words
from rlaif.data.splits import split_of
from rlaif.errors import UserError
from rlaif.records import Prompt

VERBS = (
    "merge",
    "drop",
    "count",
    "scale",
    "shift",
    "pack",
    "trim",
    "rank",
    "split",
    "mask",
    "group",
    "weigh",
)
_NOUNS = (
    "apples bridges cables drums engines ferries gates hinges islands jackets kettles ladders magnets nozzles "
    "orchards pumps quarries rivets sensors tunnels"
)
NOUNS = _NOUNS.split()
TAILS = (
    "per harbour zone",
    "with safe bounds",
    "for every tenant",
    "using cached sizes",
    "before the export",
)


def _function(verb: str, noun: str, tail: str) -> str:
    """A function whose code resembles that of no other (verb, noun)."""
    rng = random.Random(f"{verb} {noun}")
    name = [f"{rng.choice(VERBS)}_{rng.choice(NOUNS)}" for _ in range(6)]
    return (
        f"def {verb}_{noun}({noun}, {tail.replace(' ', '_')}):\n"
        f'    """{verb.capitalize()} all {noun} {tail}."""\n'
        f"    result = {name[0]}.{name[1]}({rng.randrange(10**6)})\n"
        f"    for item in {noun}:\n"
        f"        result.{name[2]}({name[3]}, {rng.randrange(10**6)})\n"
        f"    return {verb}_{name[4]}(result, {name[5]})\n\n\n"
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """240 functions in four packages of three modules, with a copied module and things to skip."""
    root = tmp_path_factory.mktemp("site")
    for number, (verb, noun) in enumerate(itertools.product(VERBS, NOUNS)):
        package = root / f"package{number % 4}"
        package.mkdir(exist_ok=True)
        with (package / f"module{VERBS.index(verb) % 3}.py").open("a") as stream:
            stream.write(_function(verb, noun, TAILS[number % 5]))
    copied = (root / "package0" / "module0.py").read_text()
    (root / "package3" / "zz_copy.py").write_text(copied.replace("result", "collected"))
    for skipped in ("package0/tests/inside.py", "package0/test_this.py", "package0/_vendor/other.py"):
        (root / skipped).parent.mkdir(exist_ok=True)
        (root / skipped).write_text(_function("skip", "skipped", TAILS[0]))
    (root / "package1" / "broken.py").write_text('def broken(:\n    """Never parsed at all."""\n')
    (root / "package1" / "made.py").write_text(
        "# This file is auto-generated.\n" + _function("made", "x", TAILS[0])
    )
    return root


@pytest.fixture
def load(tree, tmp_path):
    def load_with(**changes):
        options = {
            "cache_dir": tmp_path,
            "max_prompt_chars": 450,
            "min_reference_words": 4,
            "max_reference_words": 20,
            "max_rows": None,
            "test_fraction": 0.3,
            "validation_fraction": 0.2,
            "gold_pairs_per_construction": 20,
            "seed": 0,
            "packages": None,
            "search_dirs": [tree],
        }
        return docs.load_docs(**{**options, **changes})

    return load_with


def _all(task):
    return [*task.train, *task.validation, *task.test]


def test_rows_are_the_documented_functions(load):
    task = load()
    rows = {row.id: row for row in _all(task)}
    assert len(rows) == 240 and task.notes["clusters"] > 220
    row = rows["package0.module0:merge_apples"]
    assert row.reference == "Merge all apples per harbour zone."
    assert row.prompt.startswith("def merge_apples(apples, per_harbour_zone):\n    result = ")
    assert not any("skip" in row_id or "made" in row_id or "zz_copy" in row_id for row_id in rows)


def test_docstring_is_never_in_the_prompt_and_no_path_is_in_a_row(load, tree):
    for row in _all(load()):
        assert row.reference.rstrip(".").lower() not in row.prompt.lower()
        assert '"""' not in row.prompt
        assert str(tree) not in row.id + row.prompt + row.reference


def test_splits_are_disjoint_and_deterministic(load, tmp_path):
    first, second = load(), load(cache_dir=tmp_path / "elsewhere")
    assert first == second
    assert min(len(first.train), len(first.validation), len(first.test)) > 20
    ids = [row.id for row in _all(first)]
    assert len(ids) == len(set(ids))


def test_smaller_set_is_a_subset_with_the_same_splits_and_gold(load):
    whole = load()
    for max_rows in (1, 60, 150):
        part = load(max_rows=max_rows)
        assert len(_all(part)) == max_rows
        for name in ("train", "validation", "test"):
            assert set(getattr(part, name)) <= set(getattr(whole, name))
        whole_gold = load(gold_pairs_per_construction=10_000).gold_pairs
        assert set(part.gold_pairs) <= set(whole_gold)
        assert part.fingerprint != whole.fingerprint


def test_seed_changes_the_draw(load):
    assert {row.id for row in load(max_rows=60).train} != {row.id for row in load(max_rows=60, seed=1).train}


def test_a_lower_limit_chooses_among_the_rows_of_one_index(load, tmp_path):
    every = _all(load(max_prompt_chars=360))
    limit = sorted(len(row.prompt) for row in every)[len(every) // 2]
    fewer = _all(load(max_prompt_chars=limit))
    assert 0 < len(fewer) < len(every)
    kept = [row for row in every if len(row.prompt) <= limit]
    assert {(row.id, row.prompt, row.group) for row in fewer} == {(x.id, x.prompt, x.group) for x in kept}
    assert len(list(tmp_path.glob("docs-*.jsonl"))) == 1
    with pytest.raises(UserError, match="none of the .* functions indexed"):
        load(max_prompt_chars=5)


def test_cache_is_read_again_and_a_changed_source_is_indexed_anew(load, tree, tmp_path, monkeypatch):
    first = load()
    assert len(list(tmp_path.glob("docs-*.jsonl"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(docs, "documented_functions", lambda *_: pytest.fail("indexed twice"))
        assert load() == first
        with pytest.raises(pytest.fail.Exception):  # other filters are another index
            load(max_prompt_chars=440)
    added = tree / "package2" / "added.py"
    added.write_text(_function("rewind", "wheels", TAILS[1]))
    try:
        assert len(_all(load())) == 241
    finally:
        added.unlink()


def _row(row_id: str, prompt: str, reference: str) -> docs.DocRow:
    return docs.DocRow(row_id, prompt, reference, "")


BODY = "def pick(rows, limit):\n    best = sorted(rows)\n    top = best[:limit]\n    return wrap(top, 3)"


@pytest.mark.parametrize(
    ("second", "count", "together"),
    [
        # the same sentence, and the same code: one row stays
        (_row("b.m:other", "def other(x):\n    return x + 1", "Picks the best rows under a limit."), 1, True),
        (_row("b.m:pick", BODY.replace("    ", "  "), "Choose whatever sorts first of everything."), 1, True),
        # renamed code; same name and start; nearly the same words (7 of 8 word pairs): two rows of one cluster
        (
            _row(
                "b.m:take", BODY.replace("rows", "items").replace("pick", "take"), "Take some leading items."
            ),
            2,
            True,
        ),
        (_row("b.m:_pick", "def _pick(a):\n    return go(a)", "Pick the best rows, slowly."), 2, True),
        (
            _row("b.m:best", "def best(q):\n    return q.go()", "Quickly pick the best rows under a limit."),
            2,
            True,
        ),
        # nothing in common
        (
            _row("b.m:send", "def send(mail):\n    return mail.go()", "Send a message to the server."),
            2,
            False,
        ),
    ],
)
def test_copies_are_one_cluster(second, count, together):
    first = _row("a.m:pick", BODY, "Pick the best rows under a limit.")
    rows = docs.cluster_rows([second, first])  # the order given does not matter
    assert [row.id for row in rows] == ["a.m:pick", second.id][:count]
    assert (len({row.cluster for row in rows}) == 1) is together
    assert rows[0].cluster == "a.m:pick"


def test_copies_across_modules_share_a_split(tmp_path):
    """Near copies of 60 functions: with splits by id they would straddle; by cluster they cannot."""
    for package in ("left", "right"):
        (tmp_path / package).mkdir()
        names = itertools.islice(itertools.product(VERBS, NOUNS), 0, 240, 4)
        text = "".join(_function(verb, noun, TAILS[i % 5]) for i, (verb, noun) in enumerate(names))
        if package == "right":
            text = text.replace("result", "found").replace(" all ", " all the ")
        (tmp_path / package / "module.py").write_text(text)
    options = {"test_fraction": 0.3, "validation_fraction": 0.2, "seed": 0}
    task = docs.load_docs(
        cache_dir=tmp_path / "cache",
        max_prompt_chars=450,
        min_reference_words=4,
        max_reference_words=20,
        max_rows=None,
        gold_pairs_per_construction=0,
        packages=None,
        search_dirs=[tmp_path],
        **options,
    )
    split = {row.id: name for name in ("train", "validation", "test") for row in getattr(task, name)}
    pairs = [(row_id, row_id.replace("left", "right")) for row_id in split if row_id.startswith("left")]
    assert len(pairs) == 60
    assert all(split[a] == split[b] for a, b in pairs)
    # The mutation check: split by id instead, and copies straddle.
    assert any(split_of(a, **options) != split_of(b, **options) for a, b in pairs)


def test_gold_pairs_come_from_the_test_split(load):
    task = load()
    tests = {row.id: row for row in task.test}
    references = {row.reference for row in task.test}
    by_construction: dict[str, list] = {}
    for pair in task.gold_pairs:
        by_construction.setdefault(pair.construction, []).append(pair)
        assert (pair.origin, pair.gold_source) == ("dataset", "constructed")
        assert pair.prompt == tests[pair.prompt_id].prompt
        better = pair.response_a if pair.gold == 1.0 else pair.response_b
        worse = pair.response_b if pair.gold == 1.0 else pair.response_a
        assert pair.gold in (0.0, 1.0)
        assert better == tests[pair.prompt_id].reference
        assert worse != better
        if pair.construction in ("mismatched", "same_module"):
            assert worse in references
    assert {name: len(pairs) for name, pairs in by_construction.items()} == {
        "mismatched": 20,
        "same_module": 20,
        "truncated": 20,
        "corrupted": 20,
    }
    assert len({pair.id for pair in task.gold_pairs}) == 80


def test_where_the_other_reference_comes_from(load):
    task = load(gold_pairs_per_construction=1000)
    place = {row.reference: row.id.split(":")[0] for row in task.test}
    modules = {"mismatched": [], "same_module": []}
    for pair in task.gold_pairs:
        if pair.construction in modules:
            here = pair.prompt_id.split(":")[0]
            other = place[pair.response_b if pair.gold == 1.0 else pair.response_a]
            modules[pair.construction].append((here, other))
    assert all(here.split(".")[0] != other.split(".")[0] for here, other in modules["mismatched"])
    # Some modules may have a single test row; then the package is searched.
    assert all(here.split(".")[0] == other.split(".")[0] for here, other in modules["same_module"])
    assert sum(here == other for here, other in modules["same_module"]) > 0.9 * len(modules["same_module"])


def test_sides_are_balanced(load):
    gold = load(test_fraction=0.9, validation_fraction=0.0, gold_pairs_per_construction=1000).gold_pairs
    for name in ("mismatched", "same_module", "truncated", "corrupted"):
        values = [pair.gold for pair in gold if pair.construction == name]
        assert len(values) > 150
        # four standard deviations of a fair coin's mean
        assert abs(sum(values) / len(values) - 0.5) < 4 * 0.5 / len(values) ** 0.5


def test_truncate_by_hand():
    assert truncate(Prompt("i", "p", "Sort the rows, then drop copies.")) == "Sort the rows"  # 3 of 6
    assert truncate(Prompt("i", "p", "Sort all rows twice.")) == "Sort all"
    assert truncate(Prompt("i", "p", "Sort the rows.")) is None


def test_corrupt_keeps_length_and_swaps_half_of_the_content_words():
    sentence, other = "Sort the given rows by their weight.", "Open a network socket lazily."
    worse = corrupt(sentence, other, key=(0, "row"))
    assert worse == corrupt(sentence, other, key=(0, "row"))
    before, after = sentence.split(), worse.split()
    assert len(before) == len(after)
    changed = [i for i in range(len(before)) if before[i] != after[i]]
    # content words: Sort rows weight (the, given, by, their are stop words); max(2, ceil(3 / 2)) = 2
    assert len(changed) == 2 and set(changed) <= {0, 3, 6}
    new = {word for i in changed for word in content_words(after[i])}
    assert new <= {"open", "network", "socket", "lazily"} and len(new) == 2
    assert worse[0].isupper() and worse.endswith(".")
    assert len({corrupt(sentence, other, key=(0, f"row{i}")) for i in range(10)}) > 1
    assert corrupt("Do it.", other, key=(0, "row")) is None


def test_nothing_is_imported(tmp_path):
    (tmp_path / "hostile").mkdir()
    code = _function("merge", "apples", TAILS[0])
    (tmp_path / "hostile" / "__init__.py").write_text(f"raise SystemExit(3)\n{code}")
    script = (
        "import sys; from pathlib import Path; from rlaif.data.docs.task import load_index;"
        "from rlaif.data.docs.docstrings import SentenceFilter;"
        f"rows = load_index(Path({str(tmp_path / 'c')!r}), SentenceFilter(450, 4, 20), None,"
        f"[Path({str(tmp_path)!r})]);"
        "assert [row.id for row in rows] == ['hostile:merge_apples'], rows;"
        "assert 'hostile' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_several_processes_read_the_same_rows(tree, monkeypatch):
    """One file at a time, so that a few files are enough for processes."""
    files = list(docs.source_files(None, [tree]))
    limits = SentenceFilter(450, 4, 20)
    here = list(docs._read_rows(files, limits))
    monkeypatch.setattr(docs, "_FILES_AT_ONCE", 1)
    assert len(files) >= docs._PARTS_FOR_PROCESSES and len(here) > 100
    assert list(docs._read_rows(files, limits)) == here


def test_no_rows_is_a_user_error(tmp_path, load):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="task=docs: none of the 0 source files"):
        load(search_dirs=[tmp_path / "empty"])
    assert not list(tmp_path.glob("docs-*.jsonl"))


def test_packages_restrict_what_is_read(tmp_path, load):
    """Names that start from the package, as with all packages, so that a row keeps its id."""
    for package in ("left", "right"):
        (tmp_path / "site" / package).mkdir(parents=True)
        code = "".join(_function(verb, "apples", TAILS[0]) for verb in VERBS[:3])
        (tmp_path / "site" / package / "m.py").write_text(code)
    options = {
        "search_dirs": [tmp_path / "site"],
        "cache_dir": tmp_path / "c",
        "gold_pairs_per_construction": 0,
    }
    ids = {row.id for row in _all(load(packages=["left"], **options))}
    assert ids == {f"left.m:{verb}_apples" for verb in VERBS[:3]}
    with pytest.raises(UserError, match="task.packages: no package middle is installed"):
        load(packages=["middle"], **options)


def test_the_named_packages_are_found_in_site_packages():
    modules = {module for module, _ in docs.source_files(["jinja2", "rich"], None)}
    assert {"jinja2.lexer", "rich.table"} <= modules
    assert {module.split(".")[0] for module in modules} == {"jinja2", "rich"}


def test_bad_options_are_user_errors(load):
    with pytest.raises(UserError, match="task.max_rows=0"):
        load(max_rows=0)
    with pytest.raises(UserError, match="task.test_fraction"):
        load(test_fraction=1.2)


def test_the_installed_dependencies_are_found():
    """The default sources: real packages, by dotted name, without their tests."""
    modules = [module for module, _ in docs.source_files(None, None)]
    packages = {module.split(".")[0] for module in modules}
    assert {"torch", "transformers", "pandas", "scipy", "wandb"} <= packages <= set(docs.PACKAGES)
    assert "torch.nn.modules.linear" in modules
    assert not [m for m in modules if ".tests." in m or m.startswith("transformers.models.")]
    assert len(modules) == len(set(modules))


def test_rows_of_one_real_package(tmp_path, load):
    """Real text through the whole path, on a package small enough to index in a test."""
    import networkx.algorithms.community

    folder = next(iter(networkx.algorithms.community.__path__))
    task = load(search_dirs=[folder], cache_dir=tmp_path)
    rows = _all(task)
    assert len(rows) >= 10
    for row in rows:
        assert 4 <= len(row.reference.split()) <= 20 and row.reference.endswith(".")
        assert len(row.prompt) <= 450 and row.prompt.startswith(("def ", "async def "))
    assert dataclasses.is_dataclass(task) and task.notes["rows_indexed"] == len(rows)
