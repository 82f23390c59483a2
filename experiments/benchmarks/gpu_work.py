"""What `gpu.py` runs: random Llamas in the splits that matter, rows of random ids, and modules on them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from rlaif.data.datamodule import EncodedRow, PreferenceRow
from rlaif.inference.decoding.drawing import Decoding
from rlaif.inference.rollouts import Rollout, RolloutCollector
from rlaif.models.assemble import make_trunk
from rlaif.models.sizes import ModelSizes
from rlaif.models.split import ScalarHead, Trunk
from rlaif.records import Pair, Prompt
from rlaif.stages.common.scoring import sequence_scores
from rlaif.stages.common.training.optim import OptimOptions
from rlaif.stages.rl.online.module import PPOModule, PPOOptions

CONF = Path(__file__).parents[2] / "conf" / "rl"
# layers, hidden size, width of the feed-forward block, heads, key/value heads, tied
SIZES = {
    "tiny": (6, 128, 352, 4, 2, True),
    "135m": (30, 576, 1536, 9, 3, True),
    "1b": (16, 2048, 8192, 32, 8, False),
}
VOCABULARY = 49_152
PAIR = Pair("pair", "prompt", "", "", "", "dataset")  # for rows whose texts are not read


@dataclass
class Models:
    """One random Llama: transformers' own module, and trunks that split it in different ways."""

    plain: LlamaForCausalLM
    config: ModelSizes

    @classmethod
    def make(cls, size: str, device: str, dtype: torch.dtype, vocabulary: int = VOCABULARY) -> Models:
        layers, hidden, inner, heads, groups, tied = SIZES[size]
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            max_position_embeddings=8192,
            tie_word_embeddings=tied,
            rope_theta=100_000.0,
            bos_token_id=1,
            eos_token_id=2,
        )
        torch.manual_seed(0)
        with torch.device(device):
            plain = LlamaForCausalLM(config).to(dtype).eval()
        return cls(plain, ModelSizes.of(config))

    def trunk(self, trainable: str) -> Trunk:
        weight = self.plain.lm_head.weight
        lm = deepcopy(self.plain).float()
        return make_trunk(lm, trainable, weight.dtype, 16.0, device=weight.device)

    @property
    def weights(self) -> int:
        """Weights that a token passes through in the layers."""
        return self.config.layer_weights * self.config.num_layers

    @property
    def head(self) -> int:
        return self.config.hidden_size * self.config.vocab_size


def random_rows(count: int, low: int, high: int, vocabulary: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high, (count,), generator=generator).tolist()
    return [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in lengths]


def score_head(trunk: Trunk) -> ScalarHead:
    head = ScalarHead(trunk.config.hidden_size).init_normal(torch.Generator().manual_seed(0))
    return head.to(trunk.device)


@torch.no_grad()
def features_of(trunk: Trunk, ids: Sequence[int]) -> Tensor:
    """Features of one text on the CPU, as from the feature cache."""
    return trunk(torch.tensor([list(ids)], device=trunk.device))[0].cpu()


def sft_rows(trunk: Trunk, prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> list[EncodedRow]:
    rows = []
    for prompt, response in zip(prompts, responses, strict=True):
        found = features_of(trunk, [*prompt, *response])
        rows.append(
            EncodedRow(torch.tensor([*prompt, *response]), found[: len(prompt)], found[len(prompt) :])
        )
    return rows


def preference_rows(
    trunk: Trunk, prompts: Sequence[list[int]], first: Sequence[list[int]], second: Sequence[list[int]]
) -> list[PreferenceRow]:
    rows = []
    for prompt, a, b in zip(prompts, first, second, strict=True):
        one, other = features_of(trunk, [*prompt, *a]), features_of(trunk, [*prompt, *b])
        size = len(prompt)
        rows.append(PreferenceRow(PAIR, one[:size], one[size:], other[size:], p_a=0.8))
    return rows


def fit(
    module: pl.LightningModule, device: str, epochs: int, data: Any = None, *callbacks: pl.Callback
) -> None:
    trainer = pl.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)


def ppo_options(**changed: Any) -> PPOOptions:
    """`rl=ppo` as in the configuration."""
    node = {}
    for name in ("_common", "_rollouts", "ppo"):
        node |= yaml.safe_load((CONF / f"{name}.yaml").read_text())
    node |= {"missing_eos_penalty": 0.0} | changed
    names = {field.name for field in fields(PPOOptions)} - {"seed"}
    floats = {"lr", "eps"}
    return PPOOptions(**{name: float(node[name]) if name in floats else node[name] for name in names}, seed=0)


def ppo_module(
    trunk: Trunk, *, batch: int, new_tokens: int, value: str, minibatch: int, eos_ids: Any = ()
) -> PPOModule:
    vocabulary = trunk.config.vocab_size
    prompts = random_rows(
        batch * 8, 4 if vocabulary < 1000 else 16, 40 if vocabulary < 1000 else 128, vocabulary, 0
    )
    collector = RolloutCollector(
        [Prompt(str(i), str(i)) for i in range(len(prompts))],
        prompts,
        lambda ids: " ".join(map(str, ids)),
        Decoding(new_tokens, 1.0),
        eos_ids=eos_ids,
        samples_per_prompt=1,
        max_rows=batch,
        seed=0,
    )
    policy, reward, head = trunk.new_top(), trunk.new_top().frozen_copy(), score_head(trunk)

    def collect(iteration: int) -> Rollout:
        first = iteration * batch % len(prompts)
        return collector.collect(policy, range(first, first + batch), iteration)

    return PPOModule(
        policy,
        score_head(trunk),
        trunk.new_top() if value == "separate" else None,
        policy.frozen_copy(),
        collect=collect,
        reward=lambda r: sequence_scores(reward, head, r.features, r.last),
        diagnose=lambda _: {},
        watch=lambda _: None,
        tracker=None,
        rollouts_per_iteration=batch,
        options=ppo_options(minibatch_rollouts=minibatch, max_response_tokens=new_tokens),
        optim=OptimOptions(1e-6, 0.0, 1e-8, "constant", 0.0, 1000, 1.0),
    )
