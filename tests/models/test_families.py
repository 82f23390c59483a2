"""Every type of causal language model that transformers builds at a small size, under our trunk, tops and patterns.

The oracle is the model itself: its own forward, its own eager attention, its own `generate`, its own gradients. What
held is written to the file that `RLAIF_FAMILIES` names, and `docs/models.md` is made of that
(`docs/models_page.py`).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from zoo import NAMES, VARIANTS, build
from zoo.expected import ALL_ROWS, FLOAT32, PATTERNS, PLAIN, REFUSED, UNCACHED, UNSPLIT, WORKING
from zoo.family import LENGTH, Family, family
from zoo.record import Record

from rlaif.errors import UserError
from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.decoding.sampler import sample
from rlaif.inference.packing import SharedPrefix, pack, text_places
from rlaif.models.assemble import make_trunk
from rlaif.models.attention import USUAL, Attend, Causal, Scoring
from rlaif.models.pairs import PairCausal
from rlaif.models.parts import interface
from rlaif.models.parts.interface import set_implementation
from rlaif.models.split import Top

PROMPT, FIRST, SECOND = 10, 6, 8  # a row of prompt | a | b
# Differences of logits in units of their spread. Recurrent states amplify rounding.
ROUNDING, RECURRENT_ROUNDING = 3e-5, 1.5e-4
DIFFERENT = 3e-3

held_of = Record("RLAIF_FAMILIES")


@pytest.fixture(scope="module", autouse=True)
def _record():
    yield
    held_of.write()


def gap(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found - wanted).detach().abs().max())


def rounding(kind: Family) -> float:
    return kind.spread * (RECURRENT_ROUNDING if kind.name in PLAIN else ROUNDING)


def trainable_of(name: str) -> str:
    return "full" if name in UNSPLIT else "top:2"


def case(name: str) -> tuple[Family, Top]:
    """A type, and its base model as a top of two layers, or of all where they cannot be split."""
    return family(name), family(name).base(trainable_of(name))


def run(top: Top, ids: Tensor, *args, rows: Tensor | None = None) -> Tensor:
    """Logits of trunk and top."""
    return top.logits(top(top.trunk(ids, *args), *args, rows=rows))


@torch.no_grad()
def moved(top: Top) -> Top:
    """`top` after some training, so to speak: every weight a little different."""
    generator = torch.Generator().manual_seed(5)
    for weight in top.parameters():
        weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return top


@pytest.mark.parametrize("name", WORKING)
def test_what_the_probe_finds(name):
    verdict = case(name)[1].trunk.verdict
    assert verdict.split == (name not in UNSPLIT), verdict.why
    assert verdict.patterns == (name in PATTERNS), verdict.why
    assert bool(verdict.why) == (name in PLAIN or name in UNSPLIT)
    assert verdict.cached == (name not in UNCACHED) and not verdict.wrong
    assert (verdict.rows is not None) == (name in PATTERNS and name.partition(",")[0] not in ALL_ROWS)
    held_of(name, "patterns" if verdict.patterns else "plain rows", family(name).whole)


@pytest.mark.parametrize("name", WORKING)
@torch.no_grad()
def test_the_split_model_gives_the_logits_of_the_whole(name):
    kind, top = case(name)
    assert gap(run(top, kind.ids), kind.want) < rounding(kind)
    hidden = top(top.trunk(kind.ids)).flatten(0, 1)
    ids = kind.ids.roll(-1, 1).flatten()
    for temperature in (1.0, 0.7):
        logprobs = (kind.want / temperature).log_softmax(-1).flatten(0, 1)
        found = top.logprobs(hidden, ids, temperature)
        assert gap(found, logprobs.gather(1, ids[:, None])[:, 0]) < 2 * rounding(kind)
    tokens = torch.tensor([11, 7, 40])
    choices = top.choice_logprobs(hidden, tokens)
    assert gap(choices, kind.want.log_softmax(-1).flatten(0, 1)[:, tokens]) < 2 * rounding(kind)
    held_of(name, "whole" if name in UNSPLIT else "split")


@pytest.mark.parametrize("name", WORKING)
@torch.no_grad()
def test_by_its_own_attention_the_split_model_is_the_whole_bit_by_bit(name):
    kind, top = case(name)
    lm, ids = top.whole(), kind.ids
    ours = set_implementation(lm, "eager")
    try:
        assert torch.equal(run(top, ids), lm(input_ids=ids, use_cache=False).logits)
    finally:
        set_implementation(lm, ours)
    held_of(name, "bit-equal")


def packed_pair(kind: Family) -> tuple[Tensor, PairCausal, Tensor, int]:
    """ids (1, 24) of prompt | a | b with their pattern, positions and bound."""
    positions = torch.cat((torch.arange(PROMPT + FIRST), torch.arange(PROMPT, PROMPT + SECOND)))
    return kind.ids[:1], PairCausal([(0, PROMPT, PROMPT + FIRST, LENGTH)]), positions[None], PROMPT + SECOND


def pair_apart(kind: Family) -> Tensor:
    """Logits (1, 24, V) of prompt | a, and of b after the prompt alone."""
    ids = kind.ids[:1]
    first = kind.logits(ids[:, : PROMPT + FIRST])
    second = kind.logits(torch.cat((ids[:, :PROMPT], ids[:, PROMPT + FIRST :]), dim=1))
    return torch.cat((first, second[:, PROMPT:]), dim=1)


@pytest.mark.parametrize("name", WORKING)
@torch.no_grad()
def test_a_packed_pair_is_its_two_texts(name):
    """A model that takes whole texts only is given two."""
    kind, top = case(name)
    assert gap(run(top, *packed_pair(kind)), pair_apart(kind)) < rounding(kind)
    held_of(name, "packed pair")


@pytest.mark.parametrize("name", PLAIN)
@torch.no_grad()
def test_a_pattern_that_a_model_cannot_take_is_refused(name):
    """Its own attention would leave the pattern out, and one suffix would see the other."""
    kind, top = case(name)
    packed = pack([SharedPrefix((5, 6), ((7, 8), (9,)))], "cpu")
    with pytest.raises(UserError, match=type(kind.whole).__name__):
        run(top, packed.ids, packed.attend, packed.positions, packed.max_position)


@pytest.mark.parametrize("name", PATTERNS)
@torch.no_grad()
def test_texts_packed_after_a_shared_prefix_are_the_texts_alone(name):
    kind, top = case(name)
    rows = kind.ids.tolist()
    groups = [
        SharedPrefix(tuple(rows[0][:11]), (tuple(rows[0][11:13]), tuple(rows[1][:7]), tuple(rows[0][20:]))),
        SharedPrefix(tuple(rows[1][:4]), (tuple(rows[1][4:12]),)),
    ]
    packed = pack(groups, "cpu")
    logits = run(top, packed.ids, packed.attend, packed.positions, packed.max_position)
    row, places, lengths = text_places(groups, "cpu")
    texts = [[*group.prefix, *suffix] for group in groups for suffix in group.suffixes]
    for text, own, place, length in zip(texts, row, places, lengths, strict=True):
        assert gap(logits[own, place[:length]][None], kind.logits(torch.tensor([text]))) < rounding(kind)
    held_of(name, "shared prefix")


@pytest.mark.parametrize("name", WORKING)
@torch.no_grad()
def test_ragged_greedy_decoding_gives_the_ids_of_generate(name):
    kind, top = case(name)
    rows = kind.ids.tolist()
    prompts = [rows[0][:5], rows[1][:19], rows[1][:17] + rows[0][:2]]  # two share more tokens than any window
    if name in PLAIN:  # two that are fed together, one with a token of its prompt at first
        prompts = [rows[1][:19], rows[0][:18]]
    length = 4 if name in PLAIN else 6
    found = sample(top, prompts, [0] * len(prompts), Decoding(length, 0.0), eos_ids={2}, max_rows=8)
    words = {
        "max_new_tokens": length,
        "do_sample": False,
        "pad_token_id": 0,
        "use_cache": name not in UNCACHED,
    }
    for prompt, sampled in zip(prompts, found, strict=True):
        whole = kind.whole.generate(torch.tensor([prompt]), **words)
        assert list(sampled.ids) == whole[0, len(prompt) :].tolist()
    held_of(name, "decoding")


@pytest.mark.parametrize("name", PATTERNS)
def test_the_last_layer_at_chosen_rows_is_all_rows_gathered(name):
    kind, top = case(name)
    weights = list(top.parameters())
    for ids, attend, *places in ((kind.ids, Causal(), None, None), packed_pair(kind)):
        rows = torch.tensor([[3, 15, 22]] * len(ids))
        features = top.trunk(ids, attend, *places)
        chosen = top.logits(top(features, attend, *places, rows=rows))
        everywhere = top.logits(top(features, attend, *places)).take_along_dim(rows[:, :, None], dim=1)
        assert gap(chosen, everywhere) < rounding(kind)
        same_gradients(
            *(
                torch.autograd.grad(x.square().mean(), weights, allow_unused=True)
                for x in (chosen, everywhere)
            )
        )
    held_of(name, "chosen rows")


def same_gradients(found, wanted):
    """Equal but for rounding of the largest: a key's bias, for one, has a gradient of nothing but rounding."""
    largest = max(float(grad.abs().max()) for grad in wanted if grad is not None)
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        assert one is None or gap(one, other) < 3e-5 * largest + 1e-3 * float(other.abs().max())


@pytest.mark.parametrize("name", WORKING)
def test_gradients_reach_the_top_alone_and_are_those_of_the_whole_model(name):
    kind = family(name)
    trunk, lm = kind.trunk(trainable_of(name)), kind.copy()
    top = trunk.new_top()
    weights = torch.linspace(-1, 1, kind.want.shape[-1])
    (run(top, kind.ids) * weights).tanh().sum().backward()
    (lm(input_ids=kind.ids, use_cache=False).logits * weights).tanh().sum().backward()
    wanted, found = dict(lm.named_parameters(remove_duplicate=False)), dict(top.named_parameters())
    assert all(weight.grad is None and not weight.requires_grad for weight in trunk.lm.parameters())
    layers = tuple(f"{trunk.decoder.path.layers}.{i}." for i in (2, 3))
    assert {n for n in wanted if n.startswith(layers)} <= set(found) <= set(wanted)
    assert len(found) < len(wanted) or name in UNSPLIT
    same_gradients([weight.grad for weight in found.values()], [wanted[n].grad for n in found])
    held_of(name, "gradients")


# A plain type's top of two layers is what the tests above run.
ROLES = [
    (n, t)
    for n in WORKING
    for t in ("full", "lora:2", "top:2")
    if t != "top:2" or n not in (*UNSPLIT, *PLAIN)
]


@pytest.mark.parametrize("name, trainable", ROLES)
@torch.no_grad()
def test_a_role_starts_as_the_base_model_its_export_computes_the_same_and_its_copy_stays(name, trainable):
    kind = family(name)
    top = kind.trunk(trainable).new_top()
    assert gap(run(top, kind.ids), kind.want) < rounding(kind)
    trained = run(moved(top), kind.ids)
    assert gap(trained, kind.want) > DIFFERENT * kind.spread
    loaded = kind.copy()
    loaded.load_state_dict(top.whole().state_dict())
    assert gap(loaded(input_ids=kind.ids, use_cache=False).logits, trained) < 5 * rounding(kind)
    reference = top.frozen_copy()
    moved(top)
    assert torch.equal(run(reference, kind.ids), trained)
    assert gap(run(top, kind.ids), trained) > DIFFERENT * kind.spread
    assert not any(weight.requires_grad for weight in reference.parameters())
    held_of(name, trainable)


@pytest.mark.parametrize("name", [name for name in WORKING if name not in FLOAT32])
def test_bf16_computes_on_fp32_masters_and_stays_near(name):
    kind = family(name)
    top = kind.trunk(trainable_of(name), torch.bfloat16).new_top()
    assert {weight.dtype for weight in top.parameters()} == {torch.float32}
    logits = run(top, kind.ids)
    off = (logits.detach().float() - kind.want).abs()
    # A token whose experts are nearly tied may go to others: the median says whether the same model runs.
    assert 0 < float(off.median()) < 0.1 * kind.spread
    logits.float().logsumexp(-1).mean().backward()
    assert {weight.grad.dtype for weight in top.parameters() if weight.grad is not None} == {torch.float32}
    held_of(name, "bf16")


@pytest.mark.parametrize("name", FLOAT32)
def test_what_cannot_compute_in_bf16_says_so(name):
    with pytest.raises(
        UserError, match=r"model\.dtype=bfloat16: \w+ does not compute in it .*: write float32"
    ):
        family(name).trunk("full", torch.bfloat16)


# What their attention asks for beside queries, keys and values.
TRAITS = {
    "window": """
afmoe beam cohere2 cohere2_moe cwm dots1 exaone4 exaone_moe flint gemma2 gemma3_text gemma3n_text gemma4_text
gemma4_unified_text gpt_oss granite_swa granitemoe_swa kolibri1 laguna mellum mimo_v2_flash ministral
ministral3 mistral mixtral olmo3 phi3 qwen2 qwen2_moe qwen3 qwen3_moe smollm3 starcoder2 vaultgemma
""",
    "softcap": "gemma2 vaultgemma",
    "scale": """
gemma2 gemma3_text gemma3n_text gemma4_text gemma4_unified_text granite granite_swa granitemoe granitemoe_swa
granitemoeshared hyperclovax opt vaultgemma
""",
    "sinks": "flint gpt_oss granite_swa granitemoe_swa mimo_v2_flash",
}
# Their logits are not the head's outputs as they are: caps, scales.
AFTER_HEAD = """
beam cohere cohere2 cohere2_moe gemma2 gemma3_text gemma3n_text gemma4_text gemma4_unified_text granite
granite_swa granitemoe granitemoe_swa granitemoeshared hyperclovax minicpm3 nanochat vaultgemma
"""


class Without:
    """An attention pattern that loses something that its layers ask for."""

    def __init__(self, inner: Attend, trait: str) -> None:
        self._inner, self._trait = inner, trait

    def __call__(self, layer, query, key, value, *, scoring: Scoring = USUAL):
        return self._inner(layer, query, key, value, scoring=replace(scoring, **{self._trait: None}))


@torch.no_grad()
def traits_of(kind: Family, top: Top) -> set[str]:
    found = set()

    def watch(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> None:
        found.update(trait for trait in ("window", "softcap", "sinks") if getattr(scoring, trait) is not None)
        if abs(scoring.factor(query.shape[3]) * query.shape[3] ** 0.5 - 1) > 1e-6:
            found.add("scale")

    top(top.trunk(kind.ids, watch=watch), watch=watch)
    return found


@pytest.mark.parametrize("name", [name for name in PATTERNS if name not in VARIANTS])
@torch.no_grad()
def test_a_lost_window_cap_scale_or_sink_is_seen(name):
    kind, top = case(name)
    found = traits_of(kind, top)
    assert found == {trait for trait, names in TRAITS.items() if name in names.split()}
    for trait in found:
        assert gap(run(top, kind.ids, Without(Causal(), trait)), kind.want) > DIFFERENT * kind.spread
    hidden = top(top.trunk(kind.ids))
    head = kind.whole.get_output_embeddings()
    kept = gap(head(hidden), kind.want) < rounding(kind)
    assert kept == (name not in AFTER_HEAD.split())
    assert kept or gap(head(hidden), kind.want) > DIFFERENT


@pytest.mark.parametrize(
    "name, trait", [("mistral", "window"), ("gemma2", "softcap"), ("granite", "scale"), ("gpt_oss", "sinks")]
)
def test_the_probe_sees_what_our_attention_loses(name, trait, monkeypatch):
    def without(*asked) -> Scoring:
        return replace(Scoring(*asked), **{trait: None})

    assert make_trunk(build(name), "top:2", torch.float32, None).verdict.patterns
    monkeypatch.setattr(interface, "Scoring", without)
    verdict = make_trunk(build(name), "top:2", torch.float32, None).verdict
    assert verdict.split and not verdict.patterns and "attention: logits differ" in verdict.why


@pytest.mark.parametrize("name", UNSPLIT)
def test_what_needs_more_than_hidden_states_between_layers_is_not_split(name):
    with pytest.raises(
        UserError, match=r"model.trainable=top:2: the layers of \w+ cannot run in two parts.*full"
    ):
        family(name).trunk()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_by_its_parts_is_refused_with_a_sentence(name):
    with pytest.raises(UserError, match=type(family(name).whole).__name__):
        family(name).trunk()
    held_of(name, "refused", family(name).whole)


def test_every_type_has_a_verdict():
    assert {*PLAIN, *UNSPLIT, *REFUSED} <= set(NAMES) and not set(REFUSED) & {*PLAIN, *UNSPLIT}
    assert len(set(PATTERNS) - {*UNSPLIT, *VARIANTS}) >= 54
