"""SFT learns eight rows by heart, and greedy decoding says them back."""

import pytest
import torch

from rlaif.data.datamodule import TextDataModule, collate_sequences
from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.decoding.sampler import sample
from rlaif.stages.common.training.likelihood import LikelihoodModule
from rlaif.stages.common.training.logprobs import response_logprobs
from rlaif.stages.common.training.optim import OptimOptions

TARGETS = ("red", "green", "blue", "a cat", "no", "seven", "up", "the end")


def _rows(model, encode_row):
    return [encode_row(model, f"{i}?", target) for i, target in enumerate(TARGETS)]


@pytest.mark.parametrize("trainable", ["full", "top:1", "lora:4"])
def test_sft_overfits_eight_rows(tiny_model, encode_row, make_bare_trainer, trainable):
    model = tiny_model(trainable)
    rows, top = _rows(model, encode_row), model.trunk.new_top()
    if trainable != "full":
        with torch.no_grad():
            top.norm.weight.mul_(20)  # the frozen tied head of the tiny model gives flat logits otherwise
    data = TextDataModule.sft_view(rows, rows, batch_size=8, micro_batch_size=8, seed=0)
    module = LikelihoodModule(top, OptimOptions(1e-2, 0.0, 1e-8, "linear", 0.0, 100, 0.0))
    trainer = make_bare_trainer(100, limit_val_batches=1.0, check_val_every_n_epoch=100)
    trainer.fit(module, data)
    # ln 259 = 5.56 nats a token is chance.
    assert float(trainer.callback_metrics["sft/loss"]) < 0.1
    assert float(trainer.callback_metrics["sft/val_loss"]) < 0.1
    prompts = [row.ids[: row.prompt_length].tolist() for row in rows]
    said = sample(top, prompts, [0] * 8, Decoding(12, 0.0), eos_ids=model.eos_ids, max_rows=8)
    assert tuple(model.tokenizer.decode(got.ids[:-1]) for got in said) == TARGETS
    assert all(got.finished for got in said), "EOS is learnt as well"


def test_the_loss_is_the_mean_over_response_tokens(tiny_model, encode_row):
    model = tiny_model("top:1")
    top = model.trunk.new_top()
    with torch.no_grad():
        top.norm.weight.mul_(20)
    module = LikelihoodModule(top, OptimOptions(1e-2, 0.0, 1e-8, "linear", 0.0, 1, 0.0))
    rows = _rows(model, encode_row)
    batch = collate_sequences(rows)
    with torch.no_grad():
        loss, metrics = module._loss(batch)
        each = [response_logprobs(top, collate_sequences([row]))[0, row.prompt_length :] for row in rows]
    assert int(metrics["tokens"]) == sum(len(target) + 1 for target in TARGETS)
    assert loss.item() == pytest.approx(-torch.cat(each).mean().item(), abs=1e-5)
    of_rows = -torch.stack([row.mean() for row in each]).mean().item()
    assert abs(of_rows - loss.item()) > 1e-2, "a mean over rows is another number"
