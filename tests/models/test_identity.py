"""What a model is made of is in its digest, whatever changes, and nothing else is."""

from __future__ import annotations

import json
import shutil

import pytest
from model_folders import edit_config, save_model
from safetensors.torch import load_file

from rlaif.errors import UserError
from rlaif.models.files import source
from rlaif.models.load import ModelSpec, check_model, describe_model, load_model

COMMITS = ("a" * 40, "b" * 40)


def _spec(name, trust=False, **more):
    return ModelSpec("hub", str(name), more.pop("revision", None), "top:1", "float32", "cpu", trust, **more)


@pytest.fixture
def folder(tmp_path):
    return save_model(tmp_path / "model")


@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "chat_template.json",
        "additional_chat_templates/rag.jinja",
        "sentencepiece.bpe.model",
        "qwen.tiktoken",
        "tekken.json",
    ],
)
def test_each_file_that_a_model_is_made_of_changes_it(folder, tmp_path, file) -> None:
    before = describe_model(_spec(folder), tmp_path)
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_text((path.read_text().rstrip() if path.is_file() else "{}") + "  \n")
    assert describe_model(_spec(folder), tmp_path) != before


def test_files_that_change_nothing_are_left_out(folder, tmp_path) -> None:
    before = describe_model(_spec(folder, trust=True), tmp_path)
    for name in ("README.md", "trainer_state.json", "LICENSE", "helper.py"):
        (folder / name).write_text("{}")
    assert (
        describe_model(_spec(folder), tmp_path)
        == describe_model(_spec(folder, trust=True), tmp_path)
        == before
    )


def test_code_that_a_model_comes_with_is_part_of_it_if_it_is_trusted(folder, tmp_path) -> None:
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling.Own"})
    (folder / "parts").mkdir()
    (folder / "parts" / "layer.py").write_text("SIZE = 1\n")
    plain, before = (describe_model(_spec(folder, trust=trust), tmp_path) for trust in (False, True))
    (folder / "parts" / "layer.py").write_text("SIZE = 2\n")
    assert describe_model(_spec(folder), tmp_path) == plain
    assert describe_model(_spec(folder, trust=True), tmp_path) != before


def test_the_template_that_is_named_is_part_of_it(folder, tmp_path) -> None:
    mine = tmp_path / "mine.jinja"
    mine.write_text("{{ messages[0]['content'] }}")
    before = describe_model(_spec(folder, chat_template=str(mine)), tmp_path)
    mine.write_text("{{ messages[0]['content'] }}!")
    after = describe_model(_spec(folder, chat_template=str(mine)), tmp_path)
    assert before["chat_template"] != after["chat_template"] and before["text"] == after["text"]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`hub(commit)`: `org/tiny` in a cache, whose branch `main` is at that commit; the hub cannot be reached."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "hub" / "models--org--tiny"

    def at(commit):
        (repo / "refs").mkdir(parents=True, exist_ok=True)
        (repo / "refs" / "main").write_text(commit)
        if not (repo / "snapshots" / commit).is_dir():
            save_model(repo / "snapshots" / commit, num_hidden_layers=2 + COMMITS.index(commit))
        source.commit_of.cache_clear()
        source._reach_hub.cache_clear()
        return repo / "snapshots" / commit

    yield at
    source.commit_of.cache_clear()
    source._reach_hub.cache_clear()


def test_a_hub_id_is_its_commit_and_loads_as_that(hub, tmp_path) -> None:
    for index, commit in enumerate(COMMITS):
        hub(commit)
        assert describe_model(_spec("org/tiny"), tmp_path)["weights"] == commit
        assert check_model(_spec("org/tiny")).num_layers == 2 + index
        model = load_model(_spec("org/tiny"), tmp_path)
        assert model.trunk.config.num_layers == 2 + index and model.identity["weights"] == commit
    first = _spec("org/tiny", revision=COMMITS[0])
    assert describe_model(first, tmp_path)["weights"] == COMMITS[0]
    assert check_model(first).num_layers == 2


def test_what_is_described_is_what_loads_even_if_the_branch_moves_meanwhile(hub, tmp_path) -> None:
    hub(COMMITS[1])
    refs = hub(COMMITS[0]).parents[1] / "refs" / "main"
    assert describe_model(_spec("org/tiny"), tmp_path)["weights"] == COMMITS[0]
    refs.write_text(COMMITS[1])
    assert load_model(_spec("org/tiny"), tmp_path).trunk.config.num_layers == 2


def test_a_cached_commit_is_found_without_a_branch(hub, tmp_path) -> None:
    folder = hub(COMMITS[0])
    shutil.rmtree(folder.parents[1] / "refs")
    assert check_model(_spec("org/tiny", revision=COMMITS[0])).num_layers == 2
    with pytest.raises(UserError, match="not in the cache"):
        describe_model(_spec("org/tiny"), tmp_path)


def test_shards_that_an_index_names_otherwise_are_found(hub, tmp_path) -> None:
    folder = hub(COMMITS[0])
    (folder / "model.safetensors").rename(folder / "weights-1.safetensors")
    names = load_file(folder / "weights-1.safetensors")
    index = {"weight_map": dict.fromkeys(names, "weights-1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_model(_spec("org/tiny"), tmp_path).trunk.config.num_layers == 2
