"""The vocabulary head: one linear layer, and what the model's own forward does to its outputs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlaif.errors import UserError
from rlaif.models.parts.layers import LayerPath
from rlaif.models.parts.view import shallow, with_modules

_WIDTH = 8  # outputs on which the model's own treatment of logits is compared with none


def head_path(lm: nn.Module) -> str:
    """The path of the vocabulary head. Raises UserError if it is not one linear layer."""
    head = lm.get_output_embeddings()  # type: ignore[operator]
    for name, part in lm.named_modules():
        if part is head and isinstance(head, nn.Linear):
            return name
    raise UserError(
        f"{type(lm).__name__} has no linear vocabulary head that transformers knows: it cannot be used"
    )


class _Given(nn.Module):
    """In place of the head: hands on what it gets."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_head", head)

    @property
    def weight(self) -> Tensor:
        return self._head.weight  # type: ignore[union-attr, return-value]

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden


class ComputeHead(nn.Module):
    """The head in the dtype of what it is given, whatever that of its weights."""

    _head: nn.Linear

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        object.__setattr__(self, "_head", head)

    @property
    def weight(self) -> Tensor:
        return self._head.weight

    def forward(self, hidden: Tensor) -> Tensor:
        return linear(hidden, self._head.weight, self._head.bias)


def _echo(stack: nn.Module) -> nn.Module:
    """In place of the layers: the hidden states are the embeddings it is given."""
    from transformers.modeling_outputs import BaseModelOutputWithPast

    class Output(BaseModelOutputWithPast):
        def __getattr__(self, name: str) -> None:  # router logits and the like
            return None

    twin = shallow(stack)

    def forward(*_: Any, inputs_embeds: Tensor | None = None, **__: Any) -> Any:
        return Output(last_hidden_state=inputs_embeds)

    twin.__dict__["forward"] = forward
    return twin


class AfterHead:
    """Soft cap, scale and whatever else a model's forward applies to each output of its head."""

    def __init__(self, lm: nn.Module, path: LayerPath) -> None:
        """Raises UserError if the model's forward does not treat the head's outputs one by one."""
        self._lm = with_modules(
            lm,
            {
                path.stack: _echo(lm.get_submodule(path.stack)),
                head_path(lm): _Given(lm.get_submodule(head_path(lm))),
            },
        )
        outputs = torch.linspace(-40, 40, _WIDTH, device=next(lm.parameters()).device)[None]
        try:
            with torch.no_grad():
                changed = self(outputs)
                alone = torch.cat([self(part) for part in outputs.split(1, dim=1)], dim=1)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise UserError(
                f"{type(lm).__name__}: what follows its vocabulary head is not known: {error}"
            ) from error
        if changed.shape != outputs.shape or not torch.allclose(changed, alone, atol=1e-5):
            raise UserError(
                f"{type(lm).__name__}: what follows its vocabulary head mixes tokens: it cannot be used"
            )
        self.identity = torch.equal(changed, outputs)

    def __call__(self, outputs: Tensor) -> Tensor:
        """Logits (..., V) from the head's outputs (..., V)."""
        flat = outputs.reshape(1, -1, outputs.shape[-1])
        return self._lm(inputs_embeds=flat, use_cache=False).logits.view(outputs.shape).to(outputs.dtype)


def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The head's outputs in the dtype of `hidden`."""
    return F.linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))
