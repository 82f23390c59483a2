"""Packed pairs give the scores and the gradients of their texts run apart, ours and transformers' own."""

from dataclasses import replace

import pytest
import torch
from pair_rows import tensor_row
from transformers import LlamaForSequenceClassification

from rlaif.data.datamodule import EncodedRow, collate_preferences, collate_sequences
from rlaif.models.load import ModelSpec, load_model
from rlaif.models.split import ScalarHead
from rlaif.models.tiny import tiny_config, tiny_state, tiny_tokenizer
from rlaif.stages.common.scoring import pair_scores, sequence_scores

# (prompt, a, b) in tokens: very different lengths in one batch, equal responses' lengths, single tokens.
SHAPES = ((8, 5, 20), (1, 1, 1), (40, 3, 2), (2, 90, 1), (3, 4, 4), (120, 1, 60))
MODELS = ("full", "top:1", "top:2", "untied full", "untied top:1")


def _load(kind, tmp_path):
    """(our model, transformers' reward model with the same trunk) in fp32, embeddings tied or not."""
    torch.manual_seed(0)
    config = tiny_config(len(tiny_tokenizer()))
    config.tie_word_embeddings, config.num_labels = not kind.startswith("untied"), 1
    source = "tiny"
    if not config.tie_word_embeddings:
        from transformers import LlamaForCausalLM

        source = str(tmp_path / "untied")
        untied = LlamaForCausalLM(config)
        untied.save_pretrained(source)
        tiny_tokenizer().save_pretrained(source)
        state = untied.state_dict()
        assert not torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])
    else:
        state = tiny_state(config)
    model = load_model(
        ModelSpec(
            "tiny" if source == "tiny" else "hub", source, None, kind.split()[-1], "float32", "cpu", False
        ),
        tmp_path,
    )
    theirs = LlamaForSequenceClassification(config).eval()
    theirs.load_state_dict({k: v for k, v in state.items() if k.startswith("model.")}, strict=False)
    return model, theirs


class _Case:
    """Random pairs, a scorer of ours, and transformers' reward model with the same weights."""

    def __init__(self, kind, tmp_path):
        self.model, self.theirs = _load(kind, tmp_path)
        generator = torch.Generator().manual_seed(5)
        self.top = self.model.trunk.new_top()
        self.head = ScalarHead(32).init_normal(generator)
        self.theirs.score.weight.data.copy_(self.head.weight.data)
        self.ids = [
            [torch.randint(3, 250, (length,), generator=generator) for length in shape] for shape in SHAPES
        ]
        self.rows = [self._row(*texts) for texts in self.ids]

    def __len__(self):
        return sum(map(len, self.rows))

    def _row(self, prompt, a, b):
        first, second = (self.model.trunk(torch.cat((prompt, own))[None])[0] for own in (a, b))
        return tensor_row(first[: len(prompt)], first[len(prompt) :], second[len(prompt) :], 0.5, 1.0)

    def apart(self):
        """Rewards (B,) of prompt | a and of prompt | b, each side a right-padded batch of whole texts."""
        scores = []
        for side in ("a", "b"):
            tokens = collate_sequences(
                [
                    EncodedRow(torch.cat((ids[0], ids["_ab".index(side)])), row.prompt, getattr(row, side))
                    for ids, row in zip(self.ids, self.rows, strict=True)
                ]
            )
            scores.append(sequence_scores(self.top, self.head, tokens.features, tokens.last))
        return scores

    def transformers(self):
        """The same rewards by transformers' own reward model, text by text, without padding."""
        texts = [[torch.cat((prompt, own))[None] for own in (a, b)] for prompt, a, b in self.ids]
        scores = torch.stack([torch.cat([self.theirs(text).logits[:, 0] for text in pair]) for pair in texts])
        return scores[:, 0], scores[:, 1]

    def gradients(self, scores):
        """Gradients of a soft-label loss over the pairs, by parameter."""
        a, b = scores
        p_a = torch.linspace(0, 1, len(a))
        difference = a - b
        loss = -(p_a * difference.sigmoid().log() + (1 - p_a) * (-difference).sigmoid().log()).sum()
        modules = {**dict(self.top.named_parameters()), "score": self.head.weight}
        for parameter in modules.values():
            parameter.grad = None
        loss.backward()
        return {k: p.grad.clone() for k, p in modules.items() if p.grad is not None}


@pytest.fixture(params=MODELS)
def case(request, tmp_path):
    return _Case(request.param, tmp_path)


def test_packed_pairs_score_as_two_texts_do(case):
    with torch.no_grad():
        packed = pair_scores(case.top, case.head, collate_preferences(case.rows))
        for other in (case.apart(), case.transformers()):
            for one, two in zip(packed, other, strict=True):
                torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    assert (packed[0] - packed[1]).abs().min() > 1e-3, "the two responses' scores can be told apart"


def test_neither_the_batch_nor_the_order_of_a_pair_matters(case):
    with torch.no_grad():
        a, b = pair_scores(case.top, case.head, collate_preferences(case.rows))
        alone = [pair_scores(case.top, case.head, collate_preferences([row])) for row in case.rows]
        swapped = collate_preferences([replace(row, a=row.b, b=row.a) for row in case.rows])
        second, first = pair_scores(case.top, case.head, swapped)
    torch.testing.assert_close(torch.cat([x for x, _ in alone]), a, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat([y for _, y in alone]), b, rtol=0, atol=1e-5)
    torch.testing.assert_close(first, a, rtol=0, atol=1e-5)
    torch.testing.assert_close(second, b, rtol=0, atol=1e-5)


def test_packed_gradients_are_those_of_two_texts(case):
    packed = case.gradients(pair_scores(case.top, case.head, collate_preferences(case.rows)))
    apart = case.gradients(case.apart())
    assert packed.keys() == apart.keys()
    assert len(packed) > 9, "every layer of the top, its norm and the head"
    for name, gradient in packed.items():
        assert gradient.abs().max() > 1e-4, name
        torch.testing.assert_close(gradient, apart[name], rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_transformers(case):
    ours = case.gradients(pair_scores(case.top, case.head, collate_preferences(case.rows)))
    case.theirs.zero_grad()
    case.gradients(case.transformers())
    theirs = dict(case.theirs.named_parameters())
    torch.testing.assert_close(ours["score"], theirs["score.weight"].grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        ours["model.norm.weight"], theirs["model.norm.weight"].grad, rtol=1e-5, atol=1e-5
    )
    last = f"model.layers.{len(case.theirs.model.layers) - 1}"
    for name in ("self_attn.k_proj", "self_attn.q_proj", "mlp.down_proj"):
        torch.testing.assert_close(
            ours[f"{last}.{name}.weight"], theirs[f"{last}.{name}.weight"].grad, rtol=1e-5, atol=1e-5
        )


def test_parity_needs_the_spans_the_positions_and_the_last_tokens(case):
    """What b must not see, where b stands and where it is read all matter to the comparisons above."""
    batch = collate_preferences(case.rows)
    starts = {start for start, *_ in batch.spans}
    straight = torch.tensor([[place - max(s for s in starts if s <= place) for place in range(len(case))]])
    with torch.no_grad():
        a, b = pair_scores(case.top, case.head, batch)
        for wrong in (
            replace(
                batch, spans=tuple((start, second, second, end) for start, _, second, end in batch.spans)
            ),
            replace(batch, positions=straight),
            replace(batch, last=batch.last - torch.tensor([0, 1])),
        ):
            wrong_a, wrong_b = pair_scores(case.top, case.head, wrong)
            torch.testing.assert_close(wrong_a, a, rtol=0, atol=1e-5)
            assert (wrong_b - b).abs().max() > 1e-4


def test_pairs_of_one_row_do_not_see_each_other(case):
    """Whatever stands in all other pairs, a pair's scores stay; in its own, they do not."""
    with torch.no_grad():
        clean = torch.stack(pair_scores(case.top, case.head, collate_preferences(case.rows)))
        for kept in range(len(case.rows)):
            noisy = [
                row if index == kept else replace(row, prompt=torch.full_like(row.prompt, 7))
                for index, row in enumerate(case.rows)
            ]
            dirty = torch.stack(pair_scores(case.top, case.head, collate_preferences(noisy)))
            torch.testing.assert_close(dirty[:, kept], clean[:, kept], rtol=0, atol=1e-6)
            others = [index for index in range(len(case.rows)) if index != kept]
            assert (dirty[:, others] - clean[:, others]).abs().min() > 1e-5
