"""Exports of every type: whole models, sequence classifiers, and adapters by PEFT's format.

The oracles are transformers' Auto classes, which read the files, and a plain reading of PEFT's format.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig
from zoo.configs import VARIANTS, make_config
from zoo.expected import UNSPLIT, WORKING
from zoo.family import Family, family

from rlaif.errors import UserError
from rlaif.models.export.adapter import (
    BaseFiles,
    export_policy_adapter,
    export_reward_adapters,
    require_adapters,
    target_modules,
)
from rlaif.models.export.classifier import require_classifier
from rlaif.models.export.whole import export_policy, export_reward
from rlaif.models.load import LanguageModel
from rlaif.models.split import ScalarHead, Top
from rlaif.models.tiny import tiny_tokenizer
from rlaif.models.weights import Normalization, RewardMember

PAD = 0
SCALES = Normalization(2.5, -0.75)
# Their own attention chooses its keys by the length of the padded row.
ALONE = ["axk2"]


def model_of(kind: Family, trainable: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    return LanguageModel(kind.trunk(trainable, dtype), tiny_tokenizer(), {}, "cpu", (2, 5), PAD)


@torch.no_grad()
def moved(top: Top, size: float = 0.1) -> Top:
    """After some training, but for the embedding of the pad, which some types reset when they are loaded."""
    generator = torch.Generator().manual_seed(5)
    kept = None if top.embedding is None else top.embedding[PAD].clone()
    for weight in top.parameters():
        weight.add_(size * torch.randn(weight.shape, generator=generator))
    if kept is not None:
        top.embedding[PAD] = kept
    return top


@torch.no_grad()
def logits(top: Top, ids: torch.Tensor) -> torch.Tensor:
    return top.logits(top(top.trunk(ids)))


def gap(found: torch.Tensor, wanted: torch.Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found - wanted).detach().abs().max())


def loaded(folder: Path, kind: type = AutoModelForCausalLM) -> torch.nn.Module:
    found, info = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return found.eval()


def state_of(config) -> str:
    return config.to_json_string(use_diff=False) + str(config._attn_implementation)


@pytest.mark.parametrize("name", WORKING)
@torch.no_grad()
def test_an_exported_policy_gives_the_same_logits(name, tmp_path):
    kind = family(name)
    model = model_of(kind, "full" if name in UNSPLIT or hash_of(name) % 2 else "top:2")
    top = moved(model.trunk.new_top())
    before, own = state_of(model.trunk.hf_config), state_of(top.whole().config)
    export_policy(tmp_path, model, top)
    assert (state_of(model.trunk.hf_config), state_of(top.whole().config)) == (before, own)
    wanted = logits(top, kind.ids)
    assert gap(loaded(tmp_path)(input_ids=kind.ids, use_cache=False).logits, wanted) < 5e-4 * kind.spread
    assert gap(kind.want, wanted) > 0.05
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == "float32" and config["pad_token_id"] == PAD
    assert not any("attn_implementation" in key for key in config)
    stored = load_file(tmp_path / "model.safetensors")
    assert {value.dtype for value in stored.values() if value.is_floating_point()} == {torch.float32}
    assert not set(kind.whole.all_tied_weights_keys) & set(stored)


def hash_of(name: str) -> int:
    return sum(map(ord, name))


def texts(kind: Family) -> list[list[int]]:
    """Three lengths; one text ends in EOS."""
    return [kind.ids[0, :20].tolist(), [*kind.ids[1, :9].tolist(), 2], kind.ids[1, :3].tolist()]


@torch.no_grad()
def scores(member: RewardMember, rows: list[list[int]]) -> torch.Tensor:
    return torch.stack(
        [member.head(member.top(member.top.trunk(torch.tensor([row]))))[0, -1] for row in rows]
    )


def padded(rows: list[list[int]], pad: int = PAD) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    return {"input_ids": ids, "attention_mask": torch.tensor(mask)}


def member_of(top: Top) -> RewardMember:
    head = ScalarHead(top.trunk.config.head_size).init_normal(torch.Generator().manual_seed(1))
    return RewardMember.fold(top, head, SCALES)


def config_of(name: str):
    kind, overrides = VARIANTS.get(name, (name, {}))
    return make_config(kind, **overrides)


CLASSIFIED = [
    name for name in WORKING if type(config_of(name)) in AutoModelForSequenceClassification._model_mapping
]


@pytest.mark.parametrize("name", CLASSIFIED)
@torch.no_grad()
def test_an_exported_reward_model_scores_the_same(name, tmp_path):
    kind = family(name)
    model = model_of(kind, "full" if name in UNSPLIT else "top:2")
    member = member_of(moved(model.trunk.new_top()))
    export_reward(tmp_path, model, [member])
    found, rows = loaded(tmp_path, AutoModelForSequenceClassification), texts(kind)
    wanted = scores(member, rows)
    assert float(wanted.std()) > 0.1
    alone = torch.cat([found(**padded([row])).logits for row in rows])[:, 0]
    assert gap(alone, wanted) < 1e-4
    assert gap(found(**padded(rows)).logits[:, 0], wanted) < 1e-4 or name in ALONE
    assert (found.config.reward_scale, found.config.reward_shift, found.config.num_labels) == (2.5, -0.75, 1)


@pytest.mark.parametrize("name", [name for name in WORKING if name not in CLASSIFIED])
def test_a_type_without_a_classifier_says_so(name):
    with pytest.raises(UserError, match="export: transformers has no sequence classifier for model type"):
        require_classifier(config_of(name))


def test_classifiers_that_compute_something_else_are_refused(monkeypatch):
    """A pooler, another place that is read, and a bias, which is none of ours but may be zero."""
    from transformers import LlamaForSequenceClassification as Classifier

    bert = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, is_decoder=True
    )
    with pytest.raises(
        UserError, match="BertForSequenceClassification is more than the model and one linear"
    ):
        require_classifier(bert)
    config = family("llama").whole.config
    assert require_classifier(config) == "score"
    own = Classifier.forward

    def first(self, input_ids=None, **more):
        return own(self, input_ids=input_ids[:, :1], **more)

    monkeypatch.setattr(Classifier, "forward", first)
    with pytest.raises(UserError, match="LlamaForSequenceClassification does not score the last token"):
        require_classifier(config)


def test_a_score_head_of_another_name_and_with_a_bias(monkeypatch, tmp_path):
    from transformers import LlamaForSequenceClassification as Classifier

    start, forward = Classifier.__init__, Classifier.forward

    def init(self, config):
        start(self, config)
        self.ranker = torch.nn.Linear(config.hidden_size, 1)
        torch.nn.init.constant_(self.ranker.bias, 3.0)
        del self.score

    def run(self, *args, **kwargs):
        object.__setattr__(self, "score", self.ranker)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(Classifier, "__init__", init)
    monkeypatch.setattr(Classifier, "forward", run)
    kind = family("llama")
    model = model_of(kind, "top:2")
    member = member_of(moved(model.trunk.new_top()))
    export_reward(tmp_path, model, [member])
    stored = load_file(tmp_path / "model.safetensors")
    assert torch.equal(stored["ranker.weight"], member.head.weight) and stored["ranker.bias"] == 0
    found = loaded(tmp_path, AutoModelForSequenceClassification)
    with torch.no_grad():
        assert gap(found(**padded(texts(kind))).logits[:, 0], scores(member, texts(kind))) < 1e-4


def test_experts_are_one_tensor_each_in_files(tmp_path):
    for name in ("mixtral", "qwen3_moe"):
        model = model_of(family(name), "top:2")
        export_policy(tmp_path / name, model, model.trunk.new_top())
        stored = load_file(tmp_path / name / "model.safetensors")
        experts = {key for key in stored if ".experts." in key}
        assert len(experts) == 4 * 4 * 3 and all(stored[key].dim() == 2 for key in experts)


def test_a_model_in_bf16_is_exported_in_float32(tmp_path):
    model = model_of(family("llama"), "top:2", torch.bfloat16)
    export_policy(tmp_path, model, model.trunk.new_top())
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}


def test_generation_settings_of_the_base_stay_but_for_ends_and_pad(tmp_path):
    given = {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "bos_token_id": 1, "eos_token_id": 9}
    model = model_of(family("llama"), "top:2")
    model = LanguageModel(
        model.trunk, model.tokenizer, {}, "cpu", (2, 5), PAD, {**given, "transformers_version": "4"}
    )
    export_policy(tmp_path, model, model.trunk.new_top())
    found = json.loads((tmp_path / "generation_config.json").read_text())
    assert found == {**given, "eos_token_id": [2, 5], "pad_token_id": PAD}
    assert loaded(tmp_path).generation_config.temperature == 0.6


def test_an_export_leaves_nothing_of_an_older_one(tmp_path):
    """Whatever loads a folder prefers one file to shards, and an adapter to the model beside it."""
    model = model_of(family("llama"), "lora:2")
    top = moved(model.trunk.new_top())
    stale = {"model-00001-of-00002.safetensors", "model.safetensors.index.json", "chat_template.json"}
    for name in (*stale, "notes.txt"):
        (tmp_path / name).write_text("{}")
    export_policy_adapter(tmp_path, model, top, BaseFiles("a/b"))
    names = {file.name for file in tmp_path.iterdir()}
    assert "adapter_config.json" in names and not names & {*stale, "config.json", "model.safetensors"}
    export_policy(tmp_path, model, top)
    names = {file.name for file in tmp_path.iterdir()}
    assert not names & {"adapter_config.json", "adapter_model.safetensors"} and "notes.txt" in names
    export_policy_adapter(tmp_path, model, top, BaseFiles("a/b"))
    assert not {"config.json", "model.safetensors"} & {file.name for file in tmp_path.iterdir()}


def by_format(lm: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """`lm` with an adapter merged, by nothing but PEFT's format. Every layer that it names has its weights."""
    config = json.loads((folder / "adapter_config.json").read_text())
    stored = load_file(folder / "adapter_model.safetensors")
    assert config["peft_type"] == "LORA" and config["bias"] == "none" and config["inference_mode"]
    ends = config["target_modules"]
    named = [n for n, _ in lm.named_modules() if any(n == end or n.endswith(f".{end}") for end in ends)]
    used = set()
    for name in named:
        a, b = (stored[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
        assert len(a) == b.shape[1] == config["r"]
        update = config["lora_alpha"] / config["r"] * b @ a
        weight = lm.get_submodule(name).weight
        weight.data += update.T if config["fan_in_fan_out"] else update
        used |= {f"base_model.model.{name}.lora_{x}.weight" for x in "AB"}
    for name in config["modules_to_save"] or ():
        lm.get_submodule(name).weight.data = stored[f"base_model.model.{name}.weight"]
        used.add(f"base_model.model.{name}.weight")
    assert used == set(stored)
    return lm


# One of each kind of names, biases, transposed and merged weights.
ADAPTED = """
axk2 bloom falcon gemma3_text gpt2 gpt_neox gptj jetmoe lfm2_moe llama mamba2 mixtral opt phi3 qwen2_moe qwen3_moe
qwen4_exp_text
"""
# PEFT takes some of their layers for other weights, or they compute with their layers' weights themselves.
WHOLE_ONLY = "deepseek_v3 qwen3_next laguna jamba mamba"


@pytest.mark.parametrize("name", ADAPTED.split())
@torch.no_grad()
def test_adapters_give_the_same_logits_by_pefts_format(name, tmp_path):
    kind = family(name)
    model = model_of(kind, "lora:2")
    top = moved(model.trunk.new_top(), 0.2)
    export_policy_adapter(tmp_path, model, top, BaseFiles("a/b"))
    wanted = logits(top, kind.ids)
    found = by_format(kind.copy(), tmp_path)(input_ids=kind.ids, use_cache=False).logits
    assert gap(found, wanted) < 1e-3 * kind.spread
    assert gap(kind.want, wanted) > 0.3


@pytest.mark.parametrize("name", WHOLE_ONLY.split())
def test_where_peft_would_compute_something_else_adapters_are_refused(name):
    words = r"PEFT takes [\w, ]+ for other weights|reads the weights of \w+ itself"
    with pytest.raises(UserError, match=rf"export_format=adapter: .*({words}).*write export_format=whole"):
        require_adapters(model_of(family(name), "lora:2"), pad=False)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "qwen3_moe"])
@torch.no_grad()
def test_a_reward_models_adapter_carries_its_head(name, tmp_path):
    kind = family(name)
    model = model_of(kind, "lora:2")
    members = [member_of(moved(model.trunk.new_top(), size)) for size in (0.2, 0.1)]
    export_reward_adapters(tmp_path, model, members, BaseFiles("a/b", "main"))
    config = deepcopy(kind.whole.config)
    config.num_labels, config.pad_token_id = 1, PAD
    for folder, member in ((tmp_path, members[0]), (tmp_path / "member1", members[1])):
        bare = AutoModelForSequenceClassification.from_config(config).eval()
        bare.load_state_dict(kind.whole.state_dict(), strict=False)
        settings = json.loads((folder / "adapter_config.json").read_text())
        assert (settings["task_type"], settings["modules_to_save"]) == ("SEQ_CLS", ["score"])
        assert (settings["base_model_name_or_path"], settings["revision"]) == ("a/b", "main")
        found = by_format(bare, folder)(**padded(texts(kind))).logits[:, 0]
        assert gap(found, scores(member, texts(kind))) < 1e-4
        assert json.loads((folder / "normalization.json").read_text()) == {"scale": 2.5, "shift": -0.75}
    export_reward_adapters(tmp_path, model, members[:1], BaseFiles("a/b"))
    assert not (tmp_path / "member1").exists()


def test_ends_of_names_select_the_adapted_layers_alone():
    lm = torch.nn.ModuleDict({"stack": torch.nn.ModuleDict(), "proj": torch.nn.Linear(2, 2)})
    lm["stack"]["proj"], lm["stack"]["up"] = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert target_modules(lm, ["stack.proj", "stack.up"]) == ["stack.proj", "up"]
    assert target_modules(lm, ["stack.proj", "proj"]) == ["proj"]


def test_an_adapter_is_not_written_over_its_base_model(tmp_path):
    model = model_of(family("llama"), "lora:2")
    family("llama").copy().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds the base model"):
        export_policy_adapter(tmp_path, model, model.trunk.new_top(), BaseFiles(str(tmp_path)))
    assert (tmp_path / "model.safetensors").is_file()


def test_a_model_without_adapters_or_without_a_pad_has_no_adapters_to_export():
    with pytest.raises(UserError, match="export_format=adapter is for model.trainable=lora:R"):
        require_adapters(model_of(family("llama"), "top:2"), pad=False)
    model = model_of(family("llama"), "lora:2")
    model = LanguageModel(model.trunk, model.tokenizer, {}, "cpu", (2,), None)
    require_adapters(model, pad=False)
    with pytest.raises(UserError, match="no token free for the pad"):
        require_adapters(model, pad=True)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe", "gemma3_text"])
@torch.no_grad()
def test_peft_reads_the_adapters(name, tmp_path):
    """By PEFT itself."""
    kind = family(name)
    model = model_of(kind, "lora:2")
    top = moved(model.trunk.new_top(), 0.2)
    kind.copy().save_pretrained(tmp_path / "base")
    base = BaseFiles(str(tmp_path / "base"))
    export_policy_adapter(tmp_path / "policy", model, top, base)
    found = peft.PeftModel.from_pretrained(loaded(tmp_path / "base"), tmp_path / "policy").eval()
    wanted = logits(top, kind.ids)
    assert gap(found(input_ids=kind.ids, use_cache=False).logits, wanted) < 5e-4 * kind.spread
    member = member_of(top)
    export_reward_adapters(tmp_path / "rm", model, [member], base)
    bare = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    bare.config.pad_token_id = PAD
    reward = peft.PeftModel.from_pretrained(bare, tmp_path / "rm").eval()
    assert gap(reward(**padded(texts(kind))).logits[:, 0], scores(member, texts(kind))) < 1e-4
