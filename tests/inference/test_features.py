"""The trunk cache: what it gives is what a fresh pass gives, whatever was kept, killed, evicted or damaged before."""

import json
import logging
import os
import signal
import time
from itertools import islice, pairwise
from random import Random

import processes
import pytest
import torch
from pair_rows import tensor_row
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rlaif.data.datamodule import collate_preferences
from rlaif.inference import batches as batches_module
from rlaif.inference import features as module
from rlaif.inference.batches import length_buckets
from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.decoding.sampler import sample
from rlaif.inference.features import FeatureCache
from rlaif.inference.packing import SharedPrefix
from rlaif.models.load import ModelSpec, load_model

PLENTY = 2**30


def _tokens(random, low, high):
    return tuple(random.randrange(3, 250) for _ in range(random.randint(low, high)))


def _groups(count, seed=0, responses=2):
    random = Random(seed)
    return [
        SharedPrefix(_tokens(random, 1, 30), tuple(_tokens(random, 1, 12) for _ in range(responses)))
        for _ in range(count)
    ]


def _check(model, groups, got):
    """Each part equals that of its text run alone."""
    assert len(got) == len(groups)
    for group, own in zip(groups, got, strict=True):
        assert len(own.suffixes) == len(group.suffixes)
        for suffix, features in zip(group.suffixes, own.suffixes, strict=True):
            fresh = model.trunk(torch.tensor([[*group.prefix, *suffix]]))[0]
            whole = torch.cat((own.prefix, features))
            torch.testing.assert_close(whole, fresh, rtol=0, atol=1e-5)


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "trunk", PLENTY)


@pytest.fixture
def computed(monkeypatch):
    """The packed rows that were computed, as a list that grows."""
    rows, compute = [], module._compute

    def note(trunk, chosen, device):
        rows.extend(row.group for row in chosen)
        return compute(trunk, chosen, device)

    monkeypatch.setattr(module, "_compute", note)
    return rows


def _shards(cache):
    return sorted(cache.directory.rglob("*.safetensors"))


def _stored_tokens(cache):
    return sum(len(load_file(path)["features"]) for path in _shards(cache))


# What is computed, and what is not.


@pytest.mark.parametrize("trainable", ["top:1", "top:2"])
def test_features_are_those_of_each_text_alone(tiny_model, cache, computed, trainable):
    model, groups = tiny_model(trainable), _groups(20)
    _check(model, groups, cache.get(model, groups))
    assert computed, "the first time"
    computed.clear()
    _check(model, groups, cache.get(model, groups))
    assert not computed, "from disk"


def test_the_prefix_is_part_of_what_a_suffix_is_known_by(tiny_model, cache, monkeypatch):
    model = tiny_model("top:1")
    groups = [
        SharedPrefix((5, 6, 7), ((8, 9),)),
        SharedPrefix((50, 60), ((8, 9),)),
        SharedPrefix((8, 9), ((5,),)),
    ]
    _check(model, groups, cache.get(model, groups))
    key = module._key
    monkeypatch.setattr(module, "_key", lambda ids, after="": key(ids))
    with pytest.raises(AssertionError):
        _check(model, groups, FeatureCache(cache.directory / "wrong", PLENTY).get(model, groups))


def test_any_subset_in_any_grouping_is_read(tiny_model, cache, computed):
    model, groups = tiny_model("top:1"), _groups(12, responses=4)
    cache.get(model, groups)
    computed.clear()
    pairs = [SharedPrefix(g.prefix, g.suffixes[i : i + 2]) for g in groups[::-2] for i in (2, 0)]
    singles = [SharedPrefix(g.prefix, (g.suffixes[3],)) for g in groups[1:7]]
    for asked in (pairs, singles, pairs[:1], [*singles, *pairs, *singles], []):
        _check(model, asked, cache.get(model, asked))
    assert not computed


def test_a_prompt_is_run_and_stored_once(tiny_model, cache, computed):
    model, groups = tiny_model("top:1"), _groups(6, responses=4)
    pairs = [SharedPrefix(g.prefix, g.suffixes[i : i + 2]) for g in groups for i in (0, 2)]
    _check(model, pairs, cache.get(model, pairs))
    assert sorted(map(len, computed)) == sorted(map(len, groups)), "all pairs of a prompt in one row"
    assert _stored_tokens(cache) == sum(map(len, groups))
    # One response more: its prompt runs again, but nothing is stored twice.
    computed.clear()
    more = [SharedPrefix(g.prefix, (*g.suffixes[:1], (200, 201))) for g in groups]
    _check(model, more, cache.get(model, more))
    assert computed == [
        SharedPrefix(g.prefix, ((200, 201),)) for g in sorted(groups, key=lambda g: -len(g.prefix))
    ]
    assert _stored_tokens(cache) == sum(map(len, groups)) + 2 * len(groups)


def test_a_prompt_that_is_evicted_apart_from_its_responses_comes_back(tiny_model, cache, computed):
    model, (group,) = tiny_model("top:1"), _groups(1)
    cache.get(model, [SharedPrefix(group.prefix, group.suffixes[:1])])
    before = set(_shards(cache))
    cache.get(model, [SharedPrefix(group.prefix, group.suffixes[1:])])
    for path in before:
        path.unlink()
    computed.clear()
    late = [SharedPrefix(group.prefix, group.suffixes[1:])]
    _check(model, late, cache.get(model, late))
    assert computed == [SharedPrefix(group.prefix, ())]


def test_many_responses_of_one_prompt_do_not_make_one_huge_row(tiny_model, cache, computed, monkeypatch):
    monkeypatch.setattr(module, "MAX_RESPONSE_TOKENS", 25)
    model, (group,) = tiny_model("top:1"), _groups(1, responses=40)
    _check(model, [group], cache.get(model, [group]))
    bound = max(25, 2 * len(group.prefix))
    assert len(computed) > 3
    assert all(sum(map(len, row.suffixes)) <= bound for row in computed)
    assert _stored_tokens(cache) == len(group)
    (long,) = cache.get(model, [SharedPrefix((7,), (tuple(range(3, 100)),))])
    assert len(long.suffixes[0]) == 97, "a response longer than the bound has a row of its own"


def test_progress_counts_what_is_computed(tiny_model, cache):
    model, groups, told = tiny_model("top:1"), _groups(10), []
    cache.get(model, groups, told.append)
    assert sum(told) == 10
    cache.get(model, groups, told.append)
    assert sum(told) == 10
    cache.get(model, _groups(13), told.append)
    assert sum(told) == 13


def test_models_splits_and_dtypes_do_not_share(tiny_model, cache, computed):
    groups = _groups(3)
    for model in (tiny_model("top:1"), tiny_model("top:2"), tiny_model("top:1", "bfloat16")):
        computed.clear()
        got = cache.get(model, groups)
        assert len(computed) == 3
        assert got[0].prefix.dtype == model.trunk.dtype
    other = tiny_model("top:1")
    other.identity["weights"] = "seed1"
    computed.clear()
    cache.get(other, groups)
    assert len(computed) == 3
    assert len(list(cache.directory.iterdir())) == 4


@pytest.mark.parametrize("trainable", ["full", "lora:2"])
def test_a_model_trained_in_every_layer_keeps_nothing(tiny_model, cache, trainable):
    groups = _groups(3)
    got = cache.get(tiny_model(trainable), groups)
    assert [own.prefix.tolist() for own in got] == [list(g.prefix) for g in groups]
    assert [[s.tolist() for s in own.suffixes] for own in got] == [
        [list(s) for s in g.suffixes] for g in groups
    ]
    assert not cache.directory.exists()


# Where it lies.


def test_what_is_returned_is_the_file_itself(tiny_model, cache):
    """Freshly computed or found: the parts of a shard share one storage, and it is the file's own pages."""
    model, groups = tiny_model("top:1"), _groups(5)
    for got in (cache.get(model, groups), cache.get(model, groups)):
        parts = [part for own in got for part in (own.prefix, *own.suffixes)]
        (shard,) = _shards(cache)
        assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
        # A private mapping shows the file's bytes for as long as nobody writes to the tensor.
        before, place = parts[3].clone(), shard.read_bytes().index(parts[3].numpy().tobytes())
        with shard.open("r+b") as stream:
            stream.seek(place)
            stream.write(torch.tensor([123.0]).numpy().tobytes())
        assert parts[3][0, 0] == 123.0
        with shard.open("r+b") as stream:
            stream.seek(place)
            stream.write(before[0, 0].numpy().tobytes())
        assert torch.equal(parts[3], before)


def test_training_cannot_write_into_the_cache(tiny_model, cache):
    model, groups = tiny_model("top:1"), _groups(3)
    content = [cache.get(model, groups)[0].prefix.fill_(7), [path.read_bytes() for path in _shards(cache)]]
    _check(model, groups, cache.get(model, groups))
    assert [path.read_bytes() for path in _shards(cache)] == content[1]


def test_pairs_are_collated_out_of_the_cache(tiny_model, cache):
    model, groups = tiny_model("top:1"), _groups(4)
    rows = [tensor_row(own.prefix, *own.suffixes, 0.5, 1.0) for own in cache.get(model, groups)]
    batch = collate_preferences(rows)
    for group, (start, _, b, end) in zip(groups, batch.spans, strict=True):
        one, other = (model.trunk(torch.tensor([[*group.prefix, *s]]))[0] for s in group.suffixes)
        expected = torch.cat((one, other[len(group.prefix) :]))
        torch.testing.assert_close(batch.features[0, start:end], expected, rtol=0, atol=1e-5)
        assert b - start == len(one)


# What decoding has computed.


def _decoded(model, count=6, new=9, temperature=1.0):
    """(prompt, response) texts that the model wrote, each twice over a prompt, with their features."""
    random = Random(5)
    prompts = [_tokens(random, 1, 30) for _ in range(count) for _ in range(2)]
    prompts[1::2] = prompts[::2]
    drawn = sample(
        model.trunk.new_top(),
        prompts,
        range(2 * count),
        Decoding(new, temperature),
        eos_ids=range(200, 250),
        max_rows=5,
        keep_features=True,
    )
    assert {one.finished for one in drawn} == {True, False}
    return [(prompt, one.ids, one.features) for prompt, one in zip(prompts, drawn, strict=True)]


def _store(cache, model, decoded):
    with cache.storing(model) as store:
        for text in decoded:
            store(*text)


def _pairs(decoded):
    return [
        SharedPrefix(prompt, (a, b))
        for (prompt, a, _), (_, b, _) in zip(decoded[::2], decoded[1::2], strict=True)
    ]


@pytest.mark.parametrize("trainable", ["top:1", "top:2"])
def test_what_decoding_computed_is_found_and_is_that_of_a_fresh_pass(tiny_model, cache, computed, trainable):
    model = tiny_model(trainable)
    decoded = _decoded(model)
    _store(cache, model, decoded)
    pairs = _pairs(decoded)
    got = cache.get(model, pairs)
    assert not computed
    _check(model, pairs, got)
    for group, own in zip(pairs, got, strict=True):
        for suffix, features in zip(group.suffixes, own.suffixes, strict=True):
            fresh = model.trunk(torch.tensor([[*group.prefix, *suffix]]))[0]
            gap = torch.linalg.vector_norm(torch.cat((own.prefix, features)) - fresh, dim=-1)
            assert (gap <= 1e-5 * torch.linalg.vector_norm(fresh, dim=-1)).all()
    # Only under these very ids: a response without its last token is another one.
    cache.get(model, [SharedPrefix(g.prefix, tuple(s[:-1] or (3,) for s in g.suffixes)) for g in pairs])
    assert computed


def test_decoded_features_are_stored_once_in_bounded_shards(tiny_model, cache, small_shards, computed):
    model = tiny_model("top:1")
    decoded = _decoded(model, count=30)
    pairs = _pairs(decoded)
    cache.get(model, pairs[:3])
    held = _stored_tokens(cache)
    computed.clear()
    _store(cache, model, decoded)
    distinct = {(g.prefix, s) for g in pairs for s in g.suffixes}
    whole = sum(map(len, {g.prefix for g in pairs})) + sum(len(s) for _, s in distinct)
    assert held < _stored_tokens(cache) == whole
    sizes = [load_file(path)["features"].nbytes for path in _shards(cache)]
    assert len(sizes) > 8
    assert max(sizes) <= 4096 + 64 * 32 * 4
    _store(cache, model, decoded)
    assert _stored_tokens(cache) == whole
    _check(model, pairs, cache.get(model, pairs))
    assert not computed


def test_decoded_features_beyond_the_cap_are_left_out(tiny_model, cache, small_shards, computed):
    model = tiny_model("top:1")
    cache.get(model, _groups(9, seed=1))
    decoded = _decoded(model, count=20)
    tight = FeatureCache(cache.directory, 9000)
    _store(tight, model, decoded)
    assert 4096 < sum(load_file(path)["features"].nbytes for path in _shards(cache)) <= 9000
    pairs = _pairs(decoded)
    _check(model, pairs, tight.get(model, pairs))
    assert sum(map(len, computed)) > 0


@pytest.mark.parametrize(("trainable", "max_bytes"), [("top:1", 0), ("full", PLENTY), ("lora:2", PLENTY)])
def test_where_nothing_is_kept_decoding_need_not_keep_it_either(tiny_model, tmp_path, trainable, max_bytes):
    with FeatureCache(tmp_path / "trunk", max_bytes).storing(tiny_model(trainable)) as store:
        assert store is None
    assert not (tmp_path / "trunk").exists()


# Shards, and what a killed process leaves.


SMALL = {(module, "SHARD_BYTES"): 4096, (batches_module, "FORWARD_TOKENS"): 64}


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of 4 KiB, computed 64 tokens at a time."""
    for (where, name), value in SMALL.items():
        monkeypatch.setattr(where, name, value)


def test_shards_are_bounded(tiny_model, cache, small_shards):
    model, groups = tiny_model("top:1"), _groups(30)
    _check(model, groups, cache.get(model, groups))
    sizes = [load_file(path)["features"].nbytes for path in _shards(cache)]
    assert len(sizes) > 8
    assert max(sizes) <= 4096 + 64 * 32 * 4
    _check(model, groups, cache.get(model, groups))
    assert len(_shards(cache)) == len(sizes)


def _tiny_alone(folder):
    """The tiny model in a process of its own, with small shards."""
    for (where, name), value in SMALL.items():
        setattr(where, name, value)
    torch.set_num_threads(1)
    return load_model(ModelSpec("tiny", "tiny", None, "top:1", "float32", "cpu", False), folder)


def _compute_and_die(cache, folder, groups, batches):
    model = _tiny_alone(folder)
    compute, done = module._compute, 0

    def fail(*arguments):
        nonlocal done
        if done == batches:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        return compute(*arguments)

    module._compute = fail
    cache.get(model, groups)


def test_a_killed_process_loses_the_open_shard_alone(tiny_model, cache, small_shards, computed, tmp_path):
    model, groups = tiny_model("top:1"), _groups(30)
    killed = processes.start(_compute_and_die, cache, tmp_path, groups, 15)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    kept = _stored_tokens(cache)
    batches = length_buckets([len(g) for g in groups], max_tokens=64, max_rows=module.MAX_ROWS)
    done = sum(len(groups[index]) for batch in islice(batches, 15) for index in batch)
    assert 0 <= done - kept < 4096 / (32 * 4), "a shard is written as soon as it is full"
    computed.clear()
    _check(model, groups, cache.get(model, groups))
    assert 0 < sum(map(len, computed)) == sum(map(len, groups)) - kept


def _write_and_die(cache, folder, groups):
    model = _tiny_alone(folder)
    module.os.replace = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
    cache.get(model, groups)


def test_a_shard_that_was_being_written_does_not_count_and_goes_in_time(tiny_model, cache, tmp_path):
    model, groups = tiny_model("top:1"), _groups(6)
    killed = processes.start(_write_and_die, cache, tmp_path, groups)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert not _shards(cache)
    (left,) = cache.directory.rglob("*.tmp")
    _check(model, groups, cache.get(model, groups))
    tight = FeatureCache(cache.directory, 1)
    tight.get(model, _groups(2, seed=1))
    assert left.exists(), "it may have a living writer yet"
    hours_ago = time.time() - 2 * module.ABANDONED_SECONDS
    os.utime(left, (hours_ago, hours_ago))
    tight.get(model, _groups(2, seed=2))
    assert not left.exists()


def test_a_shard_that_cannot_be_written_leaves_nothing(tiny_model, cache, monkeypatch):
    def fill_the_disk(tensors, path, metadata):
        path.write_bytes(b"half of a shard")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", fill_the_disk)
    model, groups = tiny_model("top:1"), _groups(3)
    with pytest.raises(OSError, match="No space"):
        cache.get(model, groups)
    monkeypatch.undo()
    assert [path.name for path in cache.directory.rglob("*.*")] == ["writing.lock"]
    _check(model, groups, cache.get(model, groups))


# The size cap.


def test_the_least_recently_used_shards_go_first(tiny_model, cache, computed):
    model, sets = tiny_model("top:1"), [_groups(6, seed=seed) for seed in range(4)]
    for age, groups in zip((40, 30, 20), sets, strict=False):
        known = set(_shards(cache))
        cache.get(model, groups)
        (new,) = set(_shards(cache)) - known
        os.utime(new, (time.time() - age,) * 2)
    cache.get(model, sets[0])  # the oldest is read again
    size = max(path.stat().st_size for path in _shards(cache))
    FeatureCache(cache.directory, int(3.5 * size)).get(model, sets[3])
    computed.clear()
    for kept in (0, 2, 3):
        cache.get(model, sets[kept])
    assert not computed
    cache.get(model, sets[1])
    assert len(computed) == 6


def test_a_call_never_loses_what_it_uses(tiny_model, cache, small_shards, computed):
    """Neither what it found nor what it has written, however small the cap; all that is not in use goes."""
    model, groups = tiny_model("top:1"), _groups(30)
    cache.get(model, _groups(5, seed=1))
    cache.get(model, groups[:15])
    tight = FeatureCache(cache.directory, 1)
    computed.clear()
    _check(model, groups, tight.get(model, groups))
    assert sum(map(len, computed)) == sum(map(len, groups[15:]))
    assert _stored_tokens(cache) == sum(map(len, groups))
    got = tight.get(model, groups)
    tight.get(model, _groups(5, seed=2))
    assert _stored_tokens(cache) == sum(map(len, _groups(5, seed=2)))
    _check(model, groups, got)  # its file has lost its name, not its pages


def test_the_cap_holds_over_all_models_and_files_of_older_layouts(tiny_model, cache):
    cache.directory.mkdir()
    old = cache.directory / "of-an-older-version.safetensors"
    save_file({"features": torch.zeros(4)}, old)
    cache.get(tiny_model("top:2"), _groups(3))
    FeatureCache(cache.directory, 1).get(tiny_model("top:1"), _groups(3))
    assert not old.exists()
    assert len(_shards(cache)) == 1


# Damage.


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def _empty(path):
    path.write_bytes(b"")


def _noise(path):
    path.write_bytes(bytes(range(256)) * 64)


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-101] ^= 4
    path.write_bytes(bytes(content))


def _foreign(path):
    save_file({"features": torch.zeros(4, 32)}, path)


def _without_index(path):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, {**metadata, "parts": "{half of an ind"})


@pytest.mark.parametrize("damage", [_truncate, _empty, _noise, _flip, _foreign, _without_index])
def test_a_damaged_shard_is_computed_again(tiny_model, cache, small_shards, computed, caplog, damage):
    model, groups = tiny_model("top:1"), _groups(12)
    cache.get(model, groups)
    shards = _shards(cache)
    assert len(shards) > 2
    damaged = shards[1]
    lost = len(load_file(damaged)["features"])
    damage(damaged)
    computed.clear()
    with caplog.at_level(logging.WARNING):
        _check(model, groups, cache.get(model, groups))
    (line,) = [record.getMessage() for record in caplog.records]
    assert damaged.name in line
    assert "damaged" in line
    assert sum(map(len, computed)) == lost < sum(map(len, groups))
    assert _stored_tokens(cache) == sum(map(len, groups))
    computed.clear()
    caplog.clear()
    _check(model, groups, cache.get(model, groups))
    assert not computed
    assert not caplog.records


def test_an_error_of_the_system_deletes_nothing(tiny_model, cache, monkeypatch):
    model, groups = tiny_model("top:1"), _groups(3)
    cache.get(model, groups)

    def refuse(*arguments, **more):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(module, "safe_open", refuse)
    with pytest.raises(OSError, match="Too many"):
        cache.get(model, groups)
    assert len(_shards(cache)) == 1


# Several processes.


@pytest.mark.parametrize("moment", ["listed", "mapped", "read"])
def test_a_shard_that_disappears_is_computed_again(tiny_model, cache, computed, monkeypatch, caplog, moment):
    model, groups = tiny_model("top:1"), _groups(4)
    cache.get(model, groups)
    (shard,) = _shards(cache)
    kept, name = (
        (module._open, "_open") if moment == "listed" else (torch.UntypedStorage.from_file, "from_file")
    )
    owner = module if moment == "listed" else torch.UntypedStorage
    if moment == "read":
        kept, name, owner = json.loads, "loads", module.json

    def vanish(*arguments, **more):
        shard.unlink(missing_ok=True)
        return kept(*arguments, **more)

    computed.clear()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, vanish)
        got = cache.get(model, groups)
    _check(model, groups, got)
    assert len(computed) == (0 if moment == "read" else 4), "what is mapped stays"
    assert not caplog.records


def _get_often(cache, folder, seeds, note):
    model = _tiny_alone(folder)
    for seed in seeds:
        groups = _groups(8, seed=seed)
        _check(model, groups, cache.get(model, groups, lambda rows: note.put(rows)))


@pytest.mark.parametrize("max_bytes", [1, PLENTY])
def test_processes_do_not_break_each_other(tmp_path, max_bytes):
    """Four of them ask for overlapping sets in different orders, evicting each other's shards or sharing them."""
    cache = FeatureCache(tmp_path / "trunk", max_bytes)
    note = processes.CONTEXT.Queue()
    orders = [Random(i).sample(range(6), 6) * 2 for i in range(4)]
    started = [processes.start(_get_often, cache, tmp_path, order, note) for order in orders]
    counted = 0
    while any(process.is_alive() for process in started) or not note.empty():
        while not note.empty():
            counted += note.get()
        time.sleep(0.01)
    assert [process.exitcode for process in started] == [0, 0, 0, 0]
    if max_bytes == PLENTY:
        assert counted == 6 * 8, "each prompt was computed by one of them"
        assert _stored_tokens(cache) == sum(len(g) for seed in range(6) for g in _groups(8, seed=seed))


def test_the_cache_over_a_random_life(tiny_model, tmp_path, small_shards):
    """Subsets, other responses, new splits of the same prompts, tight caps and damage, in random order."""
    random, model = Random(0), tiny_model("top:1")
    pool = _groups(10, seed=3, responses=5)
    for _ in range(40):
        cache = FeatureCache(tmp_path / "trunk", random.choice((1, 20_000, PLENTY)))
        asked = []
        for group in random.choices(pool, k=random.randint(1, 12)):
            asked.append(
                SharedPrefix(group.prefix, tuple(random.choices(group.suffixes, k=random.randint(1, 4))))
            )
        _check(model, asked, cache.get(model, asked))
        if random.random() < 0.3:
            random.choice((_truncate, _flip, os.unlink))(random.choice(_shards(cache)))


def test_a_shard_says_what_it_holds(tiny_model, cache):
    model, groups = tiny_model("top:1"), _groups(3)
    cache.get(model, groups)
    (shard,) = _shards(cache)
    with safe_open(shard, framework="pt") as file:
        spans = sorted(json.loads(file.metadata()["parts"]).values())
        assert file.get_tensor("features").shape == (sum(map(len, groups)), 32)
    assert spans[0][0] == 0
    assert spans[-1][1] == sum(map(len, groups))
    assert all(one[1] == other[0] for one, other in pairwise(spans)), "one part behind the other"
