"""Reward models that were trained elsewhere: tokens of their own, against transformers on one text at a time."""

from __future__ import annotations

import logging
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch

from rlaif.errors import UserError
from rlaif.models.weights import load_reward
from rlaif.records import Pair, Sample
from rlaif.stages.common.context import Context
from rlaif.stages.common.rewards.classifier import text_scorer
from rlaif.stages.common.rewards.kinds import make_reward, reward_config
from rlaif.stages.common.rewards.reward import ModelReward
from rlaif.stages.common.rows import encode_pairs
from rlaif.stages.graph import Graph
from rlaif.stages.registry import STAGES

TEXT = "Open close read write the a file list and leave sum numbers user assistant Return x code long"
WORDS = TEXT.split()
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "</s>"]
TEMPLATE = "{% for m in messages %}[CLS] {{ m['role'] }} {{ m['content'] }} </s> {% endfor %}"
SAMPLES = [
    Sample("p0", "Open the file", "read", tokens=1, finished=True),
    Sample("p1", "Open the file", "close the list and leave the file", tokens=7, finished=True),
    Sample("p2", "sum a list", "Return sum", tokens=2, finished=False),
    Sample("p3", "write", "write the long code and leave x", tokens=7, finished=True),
]


def word_tokenizer(template: str | None):
    """One token for each known word, and two segments in the manner of BERT."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate([*MARKS, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", model_input_names=inputs, **names
    )
    fast.chat_template = template
    return fast


def save_decoder(folder: Path, *, labels: int = 1, template: str | None = TEMPLATE, head: bool = True) -> str:
    """A random Mistral with 20-odd words; without `head` a language model."""
    from transformers import MistralConfig, MistralForCausalLM, MistralForSequenceClassification

    tokenizer = word_tokenizer(template)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_labels=labels,
        initializer_range=0.3,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = (MistralForSequenceClassification if head else MistralForCausalLM)(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_encoder(folder: Path, **settings: Any) -> str:
    """A random BERT."""
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = word_tokenizer(None)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=1,
        initializer_range=0.3,
        **settings,
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def words_of(text: str) -> list[int]:
    return [[*MARKS, *WORDS].index(word) if word in [*MARKS, *WORDS] else 1 for word in text.split()]


@torch.no_grad()
def alone(folder: str, ids: list[int], segments: list[int] | None = None) -> float:
    """What transformers gives one text without padding."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    extra = {} if segments is None else {"token_type_ids": torch.tensor([segments])}
    return float(model(torch.tensor([ids]), **extra).logits[0, 0])


@pytest.fixture
def raw(context):
    """`raw(folder, *overrides)`: the job whose scores come as they are, in fp32."""

    def make(folder: str, *overrides: str) -> Context:
        words = ["reward=hub", f"reward.name={folder}", "reward.dtype=float32", "reward.normalize_rows=0"]
        return context(*words, "task.suffix=' code'", *overrides)

    return make


def test_a_decoder_reads_its_own_chat_template(raw, tmp_path) -> None:
    folder = save_decoder(tmp_path)
    got = text_scorer(raw(folder))(SAMPLES)
    rows = [words_of(f"[CLS] user {s.prompt} code </s> [CLS] assistant {s.response} </s>") for s in SAMPLES]
    assert got == pytest.approx([alone(folder, row) for row in rows], abs=1e-5)
    assert pstdev(got) > 0.1, "they differ by more than rounding"
    # The batch, and so its padding, does not matter; the last token does.
    assert text_scorer(raw(folder))(SAMPLES[:1]) == pytest.approx(got[:1], abs=1e-5)
    assert alone(folder, rows[1][:-1]) != pytest.approx(got[1], abs=1e-2)


def test_an_encoder_reads_two_segments(raw, tmp_path) -> None:
    folder = save_encoder(tmp_path)
    got = text_scorer(raw(folder, "reward.format=pair"))(SAMPLES)
    wanted = []
    for s in SAMPLES:
        one, two = words_of(f"[CLS] {s.prompt} code [SEP]"), words_of(f"{s.response} [SEP]")
        wanted.append(alone(folder, one + two, [0] * len(one) + [1] * len(two)))
        assert alone(folder, one + two, [0] * len(one + two)) != pytest.approx(wanted[-1], abs=1e-2)
    assert got == pytest.approx(wanted, abs=1e-5) and pstdev(got) > 1e-3


def test_policy_format_is_what_the_policy_writes_in_other_tokens(raw, tmp_path) -> None:
    folder = save_decoder(tmp_path, template=None)
    got = text_scorer(raw(folder, "reward.format=policy"))(SAMPLES)
    ends = ["</s>" if sample.finished else "" for sample in SAMPLES]
    # Begun as the tokenizer begins a text.
    rows = [
        words_of(f"[CLS] {s.prompt} code {s.response} {end}") for s, end in zip(SAMPLES, ends, strict=True)
    ]
    assert got == pytest.approx([alone(folder, row) for row in rows], abs=1e-5)
    assert alone(folder, [*rows[2], 4]) != pytest.approx(got[2], abs=1e-2), "a cut response has no end"


def test_an_exported_reward_model_gives_the_same_rewards(run, pipeline, context, tmp_path) -> None:
    run("stage=rm", f"export={tmp_path}")
    own = context()
    artifact = Graph(own, STAGES).get("rm")
    prompts = own.encoder.fitting(own.task.test)[:6]
    texts = [f"Open {'the file and ' * i}leave." for i in range(1, 7)]
    pairs = [
        Pair(f"x{i}", p.id, p.prompt, p.reference, text, "dataset")
        for i, (p, text) in enumerate(zip(prompts, texts, strict=True))
    ]
    reward = ModelReward(own, load_reward(own.model(), artifact.path), lambda scores: scores.mean(0))
    samples = [
        [Sample(p.prompt_id, p.prompt, t, 1, True) for p, t in zip(pairs, side, strict=True)]
        for side in ([p.reference for p in prompts], texts)
    ]
    wanted = reward.of_pairs((samples[0], samples[1]), encode_pairs(own, pairs, "pairs"))
    words = ["reward=hub", f"reward.name={tmp_path}", "reward.format=policy", "reward.dtype=float32"]
    got = make_reward(context(*words, "reward.normalize_rows=0"), {}).of_pairs((samples[0], samples[1]), [])
    torch.testing.assert_close(torch.tensor(got), torch.tensor(wanted), atol=1e-4, rtol=0)
    assert torch.tensor(wanted).std() > 0.05
    # Normalised again by the same references it stays what it is: those have mean 0 and deviation 1 already.
    again = make_reward(context(*words), {})
    torch.testing.assert_close(
        torch.tensor(again.of_pairs((samples[0], samples[1]), [])), torch.tensor(wanted), atol=0.05, rtol=0
    )


def test_scores_are_standardised_on_references(context, tmp_path) -> None:
    folder = save_decoder(tmp_path)
    ctx = context("reward=hub", f"reward.name={folder}", "task.validation_fraction=0.3")
    prompts = [p for p in ctx.encoder.fitting(ctx.task.validation) if p.reference]
    sides = [Sample(p.id, p.prompt, p.reference, 1, True) for p in prompts]
    got = [a for a, _ in make_reward(ctx, {}).of_pairs((sides, sides), [])]
    assert (
        len(got) > 4
        and fmean(got) == pytest.approx(0, abs=1e-5)
        and pstdev(got) == pytest.approx(1, abs=1e-5)
    )


def test_what_is_too_long_loses_its_beginning_and_says_so_once(raw, tmp_path, caplog) -> None:
    folder = save_decoder(tmp_path / "decoder")
    score = text_scorer(raw(folder, "reward.max_tokens=6"))
    with caplog.at_level(logging.WARNING):
        got = score(SAMPLES[:2])
        score(SAMPLES[:2])
    assert got[0] == pytest.approx(
        alone(folder, words_of("file code </s> [CLS] assistant read </s>")[-6:]), abs=1e-5
    )
    assert [r.getMessage() for r in caplog.records if "reward.max_tokens=6" in r.getMessage()] != []
    assert sum("reward.max_tokens" in r.getMessage() for r in caplog.records) == 1
    pair = save_encoder(tmp_path / "encoder")
    ids = words_of("[CLS] file code [SEP] read [SEP]")
    got = text_scorer(raw(pair, "reward.max_tokens=6", "reward.format=pair"))(SAMPLES[:1])
    assert got[0] == pytest.approx(alone(pair, ids, [0, 0, 0, 0, 1, 1]), abs=1e-5)


def test_it_goes_the_whole_path_without_a_reward_model_of_ours(run, pipeline, tmp_path) -> None:
    words = ["reward=hub", f"reward.name={save_decoder(tmp_path)}", "judge=scripted"]
    record = run("stage=eval", *words)
    assert {row.kind for row in record.lineage} == {"eval", "rl", "sft"}
    assert 0 <= record.summary["eval/reward_win_rate"] <= 1 and "rl/reward" in record.summary


def test_the_digest_knows_weights_tokenizer_and_format(context, tmp_path) -> None:
    one, two = save_decoder(tmp_path / "one"), save_decoder(tmp_path / "two", template=None)

    def digest_of(folder: str, *words: str) -> dict:
        found = reward_config(context("reward=hub", f"reward.name={folder}", *words))
        return {key: value for key, value in found.items() if key != "name"}

    assert digest_of(one) == digest_of(save_decoder(tmp_path / "same"))
    assert digest_of(one)["weights"] == digest_of(two)["weights"] and digest_of(one) != digest_of(two)
    turned = save_decoder(tmp_path / "turned", template=TEMPLATE.replace("</s>", "[SEP]"))
    assert digest_of(one) != digest_of(turned), "the same files by name, another template"
    assert digest_of(one)["weights"] != digest_of(save_encoder(tmp_path / "three"))["weights"]
    assert digest_of(one) != digest_of(one, "reward.format=pair")
    assert digest_of(one) != digest_of(one, "reward.max_tokens=9")


@pytest.mark.parametrize(
    ("made", "words", "said"),
    [
        (None, [], "reward.name has no value"),
        ("nowhere", [], "no such directory"),
        ("decoder", ["reward.format=xml"], "reward.format=xml is not known: write chat, pair or policy"),
        ("decoder", ["reward.max_tokens=0"], "reward.max_tokens=0"),
        ("decoder", ["reward.normalize_rows=1"], "reward.normalize_rows=1"),
        ("decoder", ["reward.dtype=half"], "reward.dtype=half: float16 overflows"),
        ("two", [], "num_labels=2"),
        ("lm", [], "MistralForCausalLM"),
    ],
)
def test_what_is_no_reward_model_is_refused_before_anything_is_built(
    made, words, said, run, tmp_path
) -> None:
    folder, name = tmp_path / "model", []
    if made is not None:
        name = [f"reward.name={folder}"]
    if made in ("decoder", "two"):
        save_decoder(folder, labels=2 if made == "two" else 1)
    if made == "lm":
        save_decoder(folder, head=False)
    root = tmp_path / "root"
    with pytest.raises(UserError) as told:
        run("stage=rl", "reward=hub", *name, *words, root=root)
    assert said in str(told.value) and not list(root.glob("artifacts/*-*"))


def test_a_head_that_was_never_trained_is_no_reward_model(raw, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_decoder(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("score.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks score\.weight, which would be random"):
        text_scorer(raw(folder))


def test_a_chat_needs_a_template(raw, tmp_path) -> None:
    with pytest.raises(UserError, match="no chat template: write reward.format=pair"):
        text_scorer(raw(save_decoder(tmp_path, template=None)))(SAMPLES)


def save_positions(folder: Path, kind: str, positions: int) -> str:
    """A random classifier with `positions` learned places, of which RoBERTa keeps those up to its pad's id."""
    import transformers

    tokenizer = word_tokenizer(None)
    sizes = {"vocab_size": len(tokenizer), "num_labels": 1, "initializer_range": 0.3, "pad_token_id": 0}
    if kind == "GPT2":
        config = transformers.GPT2Config(**sizes, n_positions=positions, n_embd=32, n_layer=1, n_head=2)
    else:
        small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = getattr(transformers, f"{kind}Config")(**sizes, **small, max_position_embeddings=positions)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        getattr(transformers, f"{kind}ForSequenceClassification")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "room"), [("Bert", 24), ("Roberta", 23), ("DebertaV2", 24), ("GPT2", 24), ("Electra", 24)]
)
def test_no_text_is_longer_than_a_models_own_positions(raw, tmp_path, caplog, kind, room) -> None:
    folder = save_positions(tmp_path, kind, 24)
    long = Sample("p", "Open " * 60, "close and leave", tokens=3, finished=True)
    with caplog.at_level(logging.WARNING):
        scores = text_scorer(raw(folder, "reward.format=pair"))([long, *SAMPLES])
    assert len(scores) == 5 and pstdev(scores) > 1e-3
    assert f"it reads {room}" in caplog.text
    cut = words_of(f"[CLS] {'Open ' * (room - 7)}code [SEP] close and leave [SEP]")
    assert len(cut) == room
    segments = [0] * (room - 4) + [1] * 4
    assert scores[0] == pytest.approx(alone(folder, cut, segments), abs=1e-5)


@pytest.mark.parametrize("pad", [-1, 999, None])
def test_a_pad_that_nobody_has_is_no_pad(raw, tmp_path, pad) -> None:
    import json

    folder = save_decoder(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"pad_token_id": pad}))
    got = text_scorer(raw(folder))(SAMPLES)
    rows = [words_of(f"[CLS] user {s.prompt} code </s> [CLS] assistant {s.response} </s>") for s in SAMPLES]
    config.write_text(json.dumps(json.loads(config.read_text()) | {"pad_token_id": 0}))
    assert got == pytest.approx([alone(folder, row) for row in rows], abs=1e-5)


def test_a_reward_model_that_cannot_be_read_is_one_sentence(raw, tmp_path) -> None:
    import json

    from safetensors.torch import load_file, save_file

    folder, weights = save_decoder(tmp_path), tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    found = {name: value.clone() for name, value in load_file(weights).items()}
    weights.write_bytes(whole[:900])
    with pytest.raises(UserError, match=r"reward\.name=.*could not be loaded"):
        text_scorer(raw(folder))
    found["model.norm.weight"][0] = float("nan")
    save_file(found, weights, metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"reward\.name=.*model\.norm\.weight holds values that are not finite"
    ):
        text_scorer(raw(folder))
    found["model.norm.weight"][:] = 1e38
    save_file(found, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"reward\.name=.* gave [34] of 4 texts a score that is not finite"):
        text_scorer(raw(folder))(SAMPLES)
    config = tmp_path / "config.json"
    stated = json.loads(config.read_text())
    config.write_text(json.dumps(stated | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(UserError, match=r"reward\.name=.* is quantised \(awq\)"):
        text_scorer(raw(folder))
