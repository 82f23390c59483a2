"""The reward model: packed pairs score as two texts do, separable pairs are separated, the best epoch is kept."""

from dataclasses import replace
from random import Random

import pytest
import pytorch_lightning as pl
import torch

from rlaif.data.datamodule import (
    PreferenceRow,
    TextDataModule,
    collate_preferences,
    collate_sequences,
)
from rlaif.models.split import ScalarHead
from rlaif.modules import RewardModule
from rlaif.modules.optim import OptimOptions
from rlaif.modules.reward import PreferenceLossOptions, pair_scores, sequence_scores

PLAIN = PreferenceLossOptions(margin=0.0, label_smoothing=0.0, temperature=1.0, centering=0.0)
TEXTS = (
    ("a prompt", "short", "a much longer answer"),
    ("b", "x", "y"),
    ("the third one is long", "and so is this answer to it", "no"),
)


def _pairs(model, encode_row, texts=TEXTS, p_a=0.5):
    return [PreferenceRow(encode_row(model, p, a), encode_row(model, p, b), p_a) for p, a, b in texts]


def _scorer(model, seed=3):
    return model.trunk.new_top(), ScalarHead(32).init_normal(torch.Generator().manual_seed(seed))


def _apart(top, head, rows):
    tokens = collate_sequences(rows)
    return sequence_scores(top, head, tokens.features, tokens.last)


@pytest.mark.parametrize("trainable", ["full", "top:1", "top:2"])
def test_packed_pairs_score_as_two_texts_do(tiny_model, encode_row, trainable):
    model = tiny_model(trainable)
    (top, head), rows = _scorer(model), _pairs(model, encode_row)
    with torch.no_grad():
        a, b = pair_scores(top, head, collate_preferences(rows))
        torch.testing.assert_close(a, _apart(top, head, [r.a for r in rows]), rtol=0, atol=1e-5)
        torch.testing.assert_close(b, _apart(top, head, [r.b for r in rows]), rtol=0, atol=1e-5)
        alone = [pair_scores(top, head, collate_preferences([row])) for row in rows]
        torch.testing.assert_close(a, torch.cat([x for x, _ in alone]), rtol=0, atol=1e-5)
        torch.testing.assert_close(b, torch.cat([y for _, y in alone]), rtol=0, atol=1e-5)
        swapped = collate_preferences([PreferenceRow(r.b, r.a, 1 - r.p_a) for r in rows])
        second, first = pair_scores(top, head, swapped)
        torch.testing.assert_close(first, a, rtol=0, atol=1e-5)
        torch.testing.assert_close(second, b, rtol=0, atol=1e-5)
    assert (a - b).abs().min() > 1e-3


@pytest.mark.parametrize("trainable", ["full", "top:1", "top:2"])
def test_packed_gradients_are_those_of_two_texts(tiny_model, encode_row, trainable):
    model = tiny_model(trainable)
    (top, head), rows = _scorer(model), _pairs(model, encode_row)
    gradients = []
    for packed in (True, False):
        top.zero_grad()
        head.zero_grad()
        if packed:
            a, b = pair_scores(top, head, collate_preferences(rows))
        else:
            a, b = (_apart(top, head, side) for side in ([r.a for r in rows], [r.b for r in rows]))
        (a - b).sigmoid().log().sum().backward()
        gradients.append(
            [p.grad.clone() for p in (*top.parameters(), *head.parameters()) if p.grad is not None]
        )
    assert any(g.abs().max() > 1e-3 for g in gradients[0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_parity_needs_the_mask_and_the_positions(tiny_model, encode_row):
    """What b must not see, and where b stands, both matter to the comparison above."""
    model = tiny_model("top:1")
    (top, head), rows = _scorer(model), _pairs(model, encode_row)
    batch = collate_preferences(rows)
    plain = torch.arange(batch.features.shape[1]).expand_as(batch.positions)
    with torch.no_grad():
        a, b = pair_scores(top, head, batch)
        for wrong in (
            replace(batch, blocked=torch.zeros_like(batch.blocked)),
            replace(batch, positions=plain),
        ):
            wrong_a, wrong_b = pair_scores(top, head, wrong)
            torch.testing.assert_close(wrong_a, a, rtol=0, atol=1e-5)
            assert (wrong_b - b).abs().max() > 1e-4


def test_the_score_is_read_at_the_last_token(tiny_model, encode_row):
    model = tiny_model("top:1")
    (top, head), rows = _scorer(model), [r.a for r in _pairs(model, encode_row)]
    with torch.no_grad():
        expected = torch.stack([head(top(row.features[None]))[0, -1] for row in rows])
        torch.testing.assert_close(_apart(top, head, rows), expected, rtol=0, atol=1e-5)
        before = torch.stack([head(top(row.features[None]))[0, -2] for row in rows])
    assert (before - expected).abs().min() > 1e-4


def _separable(model, encode_row, count, seed=0):
    """Pairs whose better response alone holds an exclamation mark somewhere inside; a and b take turns."""
    random, rows = Random(seed), []
    for i in range(count):
        good, bad = (["".join(random.choices("abcdefgh", k=5)) for _ in "12"] for _ in "12")
        words = ("!".join(good), ".".join(bad))
        a, b = words if i % 2 else words[::-1]
        rows.append(
            PreferenceRow(encode_row(model, f"say {i}", a), encode_row(model, f"say {i}", b), float(i % 2))
        )
    return rows


def _accuracy(module, rows):
    with torch.no_grad():
        a, b = pair_scores(module.top, module.head, collate_preferences(rows))
    return sum(float((x > y) == (row.p_a > 0.5)) for x, y, row in zip(a, b, rows, strict=True)) / len(rows)


def test_separable_pairs_are_separated(tiny_model, encode_row, make_bare_trainer):
    model = tiny_model("top:1")
    top, head = _scorer(model)
    train, held = _separable(model, encode_row, 48), _separable(model, encode_row, 24, seed=1)
    module = RewardModule(
        top, head, OptimOptions(1e-2, 0.0, 1e-8, "cosine", 0.0, 120), PLAIN, head_lr_factor=3.0
    )
    assert _accuracy(module, train) < 0.8
    data = TextDataModule.preference_view(train, held, batch_size=8, seed=0)
    trainer = make_bare_trainer(20, gradient_clip_val=1.0)
    trainer.fit(module, data)
    assert _accuracy(module, train) == 1.0
    assert _accuracy(module, held) == 1.0, "words it has not seen"
    assert float(trainer.callback_metrics["rm/val_accuracy"]) == 1.0
    assert module.best_loss < 0.1
    flipped = [replace(row, p_a=1 - row.p_a) for row in held]
    assert _accuracy(module, flipped) == 0.0


class _Remember(pl.Callback):
    def __init__(self):
        self.losses, self.states = [], []

    def on_train_epoch_end(self, trainer, module):
        self.losses.append(float(trainer.callback_metrics["rm/val_loss"]))
        self.states.append({k: v.clone() for k, v in module.state_dict().items()})


def test_the_best_epoch_is_what_stays(tiny_model, encode_row, make_bare_trainer):
    """Validation pairs with the opposite taste get worse while the training pairs are learnt."""
    model = tiny_model("top:1")
    top, head = _scorer(model)
    train = _separable(model, encode_row, 16)
    against = [replace(row, p_a=1 - row.p_a) for row in _separable(model, encode_row, 8, seed=1)]
    module = RewardModule(
        top, head, OptimOptions(3e-3, 0.0, 1e-8, "constant", 0.0, 40), PLAIN, head_lr_factor=1.0
    )
    seen = _Remember()
    data = TextDataModule.preference_view(train, against, batch_size=8, seed=0)
    make_bare_trainer(8, callbacks=[seen]).fit(module, data)
    best = min(range(8), key=seen.losses.__getitem__)
    assert seen.losses[-1] > seen.losses[best] + 0.1
    assert module.best_loss == pytest.approx(seen.losses[best], abs=1e-6)
    for name, value in module.state_dict().items():
        assert torch.equal(value, seen.states[best][name]), name
    assert not torch.equal(module.head.weight, seen.states[-1]["head.weight"])
    with torch.no_grad():
        loss, _ = module._loss(collate_preferences(against))
    assert loss.item() == pytest.approx(seen.losses[best], abs=1e-5)
