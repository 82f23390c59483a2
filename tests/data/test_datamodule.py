"""Collators by hand, and order that is a function of (seed, epoch) in and out of a Trainer."""

import doctest

import pytest
import pytorch_lightning as pl
import torch
from pair_rows import tensor_row

import rlaif.data.datamodule as datamodule
from rlaif.data.datamodule import (
    EncodedRow,
    EpochBatches,
    PromptCursor,
    TextDataModule,
    collate_preferences,
    collate_sequences,
)


def _features(ids):
    ids = torch.tensor(ids).float()
    return torch.stack([ids, -ids], dim=1)


def _row(ids, prompt):
    return EncodedRow(torch.tensor(ids), _features(ids[:prompt]), _features(ids[prompt:]))


def _pair(prompt, a, b, p_a, weight=1.0):
    return tensor_row(_features(prompt), _features(a), _features(b), p_a, weight)


def test_doctests_run():
    result = doctest.testmod(datamodule)
    assert result.attempted >= 3
    assert result.failed == 0


def test_sequences_by_hand():
    batch = collate_sequences([_row([5, 6, 7, 8], 2), _row([9, 4], 1)])
    assert batch.ids.tolist() == [[5, 6, 7, 8], [9, 4, 0, 0]]
    assert batch.features[1].tolist() == [[9, -9], [4, -4], [0, 0], [0, 0]]
    assert batch.response_mask.tolist() == [[False, False, True, True], [False, True, False, False]]
    assert batch.last.tolist() == [3, 1]


def test_preferences_by_hand():
    """p p | a a a | b b, and behind it p | a | b: one row without padding."""
    rows = [_pair([1, 2], [11, 12, 13], [21, 22], 0.75, weight=0.25), _pair([3], [14], [24], 0.0)]
    batch = collate_preferences(rows)
    assert batch.features[..., 0].tolist() == [[1, 2, 11, 12, 13, 21, 22, 3, 14, 24]]
    assert batch.features[..., 1].tolist() == [[-1, -2, -11, -12, -13, -21, -22, -3, -14, -24]]
    # b stands where a did: 2, 3 behind a prompt of two tokens.
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 2, 3, 0, 1, 1]]
    assert batch.spans == ((0, 2, 5, 7), (7, 8, 9, 10))
    assert batch.last.tolist() == [[4, 6], [8, 9]]
    assert batch.p_a.tolist() == [0.75, 0.0]
    assert batch.weight.tolist() == [0.25, 1.0]
    assert batch.p_a.dtype == batch.weight.dtype == torch.float32
    moved = batch.to("meta")
    assert moved.spans == batch.spans
    assert all(t.device.type == "meta" for t in vars(moved).values() if isinstance(t, torch.Tensor))


@pytest.mark.parametrize(("rows", "size", "pool"), [(57, 8, 2), (64, 8, 16), (3, 8, 1), (20, 1, 4)])
def test_every_row_once_an_epoch(rows, size, pool):
    batches = EpochBatches([1 + i % 13 for i in range(rows)], size, seed=3, pool=pool)
    for epoch in range(3):
        batches.set_epoch(epoch)
        drawn = list(batches)
        assert len(drawn) == len(batches)
        assert sorted(i for batch in drawn for i in batch) == list(range(rows))
        assert max(len(batch) for batch in drawn) <= size


def test_order_depends_on_seed_and_epoch_alone():
    lengths = [1 + (7 * i) % 31 for i in range(50)]

    def order(seed, epoch, before=()):
        batches = EpochBatches(lengths, 4, seed)
        for earlier in before:
            batches.set_epoch(earlier)
            list(batches)
        batches.set_epoch(epoch)
        return list(batches)

    assert order(0, 2) == order(0, 2, before=(0, 1)), "what was drawn before does not matter"
    assert order(0, 2) != order(0, 1)
    assert order(0, 2) != order(1, 2)
    neighbours = [{frozenset(batch) for batch in order(0, epoch)} for epoch in (1, 2)]
    assert neighbours[0] != neighbours[1], "batches are other sets, not the same ones shuffled"


def test_batches_hold_rows_of_similar_length():
    lengths = torch.randint(1, 200, (256,), generator=torch.Generator().manual_seed(0)).tolist()

    def padded(batches):
        return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches) / sum(lengths)

    plain = [list(range(i, i + 8)) for i in range(0, 256, 8)]
    assert padded(plain) > 1.5
    assert padded(EpochBatches(lengths, 8, seed=0)) < 1.15


class _Seen(pl.LightningModule):
    """Notes the first id of each row it is given, epoch by epoch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.epochs = {}

    def training_step(self, step, step_index):
        self.epochs.setdefault(self.current_epoch, []).append(
            [int(first) for batch in step for first in batch.ids[:, 0]]
        )
        return self.weight * 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(rows, max_epochs, checkpoint=None, resume=None):
    module = _Seen()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    data = TextDataModule.sft_view(rows, [], batch_size=4, micro_batch_size=3, seed=5)
    trainer.fit(module, data.train_dataloader(), ckpt_path=resume)
    if checkpoint:
        trainer.save_checkpoint(checkpoint)
    return module.epochs


def test_a_trainer_tells_the_epoch_also_after_a_resume(tmp_path):
    rows = [_row([10 + i, *range(1, 2 + i % 5)], 1) for i in range(22)]
    whole = _fit(rows, 3)
    by_hand = EpochBatches([len(row.ids) for row in rows], 4, seed=5)
    for epoch in range(3):
        by_hand.set_epoch(epoch)
        assert whole[epoch] == [[10 + i for i in batch] for batch in by_hand]
    assert whole[0] != whole[1] != whole[2]
    _fit(rows, 1, checkpoint=tmp_path / "one.ckpt")
    resumed = _fit(rows, 3, resume=tmp_path / "one.ckpt")
    assert resumed == {1: whole[1], 2: whole[2]}


def test_validation_rows_come_once_and_by_length():
    rows = [_row(list(range(1, 2 + (5 * i) % 7)), 1) for i in range(10)]
    loader = TextDataModule.sft_view(rows, rows, batch_size=8, micro_batch_size=4, seed=0).val_dataloader()
    widths = [batch.ids.shape[1] for batch in loader]
    assert sum(len(batch.ids) for batch in loader) == 10
    assert widths == sorted(widths)


def test_the_preference_view_collates_pairs():
    pairs = [_pair([1], [2, i + 5], [3], i / 10) for i in range(6)]
    data = TextDataModule.preference_view(
        [pairs], pairs, epochs_per_phase=1, batch_size=4, micro_batch_size=4, seed=0
    )
    labels = torch.cat([batch.p_a for step in data.train_dataloader() for batch in step])
    assert sorted(labels.tolist()) == pytest.approx([i / 10 for i in range(6)])


def test_a_cursor_repeats_nothing_inside_a_pass():
    cursor = PromptCursor(count=12, per_iteration=5, seed=0)
    drawn = [i for iteration in range(12) for i in cursor.indices(iteration)]
    assert len(drawn) == 60
    passes = [drawn[start : start + 12] for start in range(0, 60, 12)]
    assert all(sorted(turn) == list(range(12)) for turn in passes)
    assert len({tuple(turn) for turn in passes}) == 5, "each pass is shuffled anew"


def test_a_cursor_is_a_pure_function():
    cursor = PromptCursor(12, 5, seed=0)
    late = PromptCursor(12, 5, seed=0).indices(7)
    assert [cursor.indices(i) for i in (3, 7, 0)][1] == late == cursor.indices(7)
    assert PromptCursor(12, 5, seed=1).indices(7) != late


def test_a_cursor_wraps_where_an_iteration_is_longer_than_a_pass():
    wanted = PromptCursor(count=3, per_iteration=8, seed=0).indices(0)
    assert len(wanted) == 8
    assert sorted(wanted[:3]) == sorted(wanted[3:6]) == [0, 1, 2]
