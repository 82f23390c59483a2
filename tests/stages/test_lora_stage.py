"""model.trainable=lora:R from the first stage to the last, and what it leaves on disk."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from zoo import save

from rlaif.errors import UserError
from rlaif.models.load import ModelSpec, load_model
from rlaif.models.weights import TOP_FILE, load_reward, load_top

LORA = ("model.trainable=lora:2", "model.lora_alpha=8")


@pytest.fixture(scope="module")
def adapted(run):
    """The whole path with adapters."""
    return run("stage=pipeline", *LORA)


@pytest.fixture
def folder(adapted, warm_root):
    """`folder(kind)`: where the artifact of a stage lies."""
    digests = {row.kind: row.digest for row in adapted.lineage}
    return lambda kind: warm_root / "artifacts" / f"{kind}-{digests[kind]}"


@pytest.fixture
def model(tmp_path):
    return load_model(ModelSpec("tiny", "tiny", None, "lora:2", "float32", "cpu", False, 8.0), tmp_path)


def test_every_stage_runs_on_adapters(adapted, pipeline):
    assert adapted.state == "finished" and not any(row.reused for row in adapted.lineage)
    kinds = [row.kind for row in adapted.lineage]
    assert sorted(kinds) == sorted(["sft", "sample", "label", "rm", "rl", "eval"])
    assert abs(adapted.summary["rl/ratio_first"] - 1) <= 1e-5
    assert adapted.history and adapted.summary["sft/val_loss"] != pipeline.summary["sft/val_loss"]
    first = next(row for row in adapted.history if "rl/kl" in row)
    assert first["rl/kl"] == 0.0, "the policy starts as its reference, the SFT policy, to the last bit"


@pytest.mark.parametrize("kind", ["sft", "rm", "rl"])
def test_artifacts_hold_adapters_alone(kind, folder):
    stored = load_file(folder(kind) / TOP_FILE)
    heads = {name for name in stored if name.endswith("score.weight")}
    assert len(heads) == (kind == "rm")
    assert {name.rsplit(".", 1)[1] for name in stored.keys() - heads} == {"a", "b"}
    assert len(stored) - len(heads) == 3 * 7 * 2


def test_roles_go_on_from_the_adapters_of_sft(folder, model):
    sft, policy = (load_top(model, folder(kind)) for kind in ("sft", "rl"))
    pairs = zip(sft.state_dict().values(), policy.state_dict().values(), strict=True)
    gap = max(float((a - b).abs().max()) for a, b in pairs)
    assert 0 < gap < 0.02, "a few steps away"
    assert sft.layers[0].mlp.up_proj.b.any()


def test_exports_are_whole_models(run, adapted, folder, model, tmp_path):
    run("stage=rl", *LORA, f"export={tmp_path / 'policy'}")
    run("stage=rm", *LORA, f"export={tmp_path / 'rm'}")
    ids = torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    top, (member,) = load_top(model, folder("rl")), load_reward(model, folder("rm"))
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", dtype=torch.float32)(ids).logits
        torch.testing.assert_close(logits, top.logits(top(ids)), rtol=0, atol=1e-5)
        reward = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm", dtype=torch.float32)
        expected = member.head(member.top(ids))[:, -1]
        torch.testing.assert_close(reward(ids).logits[:, 0], expected, rtol=0, atol=1e-5)
    assert "lora:2" in (tmp_path / "policy" / "README.md").read_text()


def test_rank_and_alpha_make_another_model(run, adapted, warm_root):
    """Another alpha is another policy; where there are no adapters it is nothing."""
    before = {path.name for path in (warm_root / "artifacts").iterdir()}
    run("stage=sft", "model.lora_alpha=3")
    assert {path.name for path in (warm_root / "artifacts").iterdir()} == before
    run("stage=sft", "model.trainable=lora:2", "model.lora_alpha=3")
    new = {path.name for path in (warm_root / "artifacts").iterdir()} - before
    assert [name.split("-")[0] for name in new] == ["sft"]


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["model.trainable=lora:0"], "model.trainable"),
        (["model.trainable=lora:2", "model.lora_alpha=0"], "model.lora_alpha"),
        (["model.trainable=lora"], "model.trainable"),
    ],
)
def test_bad_adapters_are_refused_before_anything_is_built(run, tmp_path, words, key):
    with pytest.raises(UserError, match=key):
        run("stage=rl", *words, root=tmp_path)
    assert not list(tmp_path.glob("artifacts/*"))


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """Words for a model whose files an adapter can name, with a root of its own."""
    folder = save(tmp_path_factory.mktemp("base"), "gpt2")
    words = ("model=hub", f"model.name={folder}", "models.tiny=false", "model.dtype=float32", *LORA)
    return words, folder, tmp_path_factory.mktemp("root")


def test_adapters_are_exported_as_the_card_loads_them(run, on_disk, tmp_path):
    words, folder, root = on_disk
    record = run("stage=rm", *words, f"export={tmp_path}", "export_format=adapter", root=root)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(folder.resolve()) and settings["revision"] is None
    assert (settings["r"], settings["lora_alpha"], settings["fan_in_fan_out"]) == (2, 8, True)
    assert settings["target_modules"] == ["c_attn", "c_fc", "c_proj"]
    artifact = next(root / "artifacts" / row.name for row in record.lineage if row.kind == "rm")
    stored, own = load_file(tmp_path / "adapter_model.safetensors"), load_file(artifact / TOP_FILE)
    assert torch.equal(stored["base_model.model.score.weight"], own["score.weight"])
    layer = "transformer.h.1.attn.c_attn"
    assert torch.equal(stored[f"base_model.model.{layer}.lora_A.weight"], own[f"top.{layer}.a"])
    assert torch.equal(stored[f"base_model.model.{layer}.lora_B.weight"], own[f"top.{layer}.b"])
    assert len(stored) == len(own)
    card = (tmp_path / "README.md").read_text()
    assert "PeftModel.from_pretrained" in card and "library_name: peft" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    compile(code, "card", "exec")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.trainable=top:2"], "export_format=adapter is for model.trainable=lora:R.*not for top:2"),
        (["model.trainable=full"], "export_format=adapter is for model.trainable=lora:R.*not for full"),
        (["models.tiny=true"], "export_format=adapter: the tiny random model is in no folder"),
    ],
)
def test_adapters_that_cannot_be_are_refused_before_training(run, on_disk, tmp_path, words, message):
    own, _, root = on_disk
    before = sorted(root.glob("artifacts/*"))
    job = ("stage=sft", *own, *words, f"export={tmp_path / 'x'}", "export_format=adapter")
    for more in ((), ("plan=true",)):
        with pytest.raises(UserError, match=message):
            run(*job, *more, root=root)
    assert sorted(root.glob("artifacts/*")) == before and not (tmp_path / "x").exists()


def test_a_reward_model_without_a_classifier_is_refused_before_training(run, tmp_path):
    folder = save(tmp_path / "model", "granite")
    words = ("model=hub", f"model.name={folder}", "models.tiny=false", "model.trainable=top:2")
    with pytest.raises(
        UserError, match="export: transformers has no sequence classifier for model type 'granite'"
    ):
        run("stage=rm", *words, f"export={tmp_path / 'x'}", root=tmp_path)
    assert not list(tmp_path.glob("artifacts/*")) and not (tmp_path / "x").exists()
