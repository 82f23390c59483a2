"""A causal language model taken apart: which modules are its layers, what runs behind them, how its head is reached.

Everything is found by looking at the modules and by running a few tokens, and checked by numbers (`probe.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rlaif.errors import UserError
from rlaif.models.attention import CAUSAL, Attend, AttendRows, whole_rows
from rlaif.models.parts.head import AfterHead, head_path
from rlaif.models.parts.interface import NAME, Pass, Watch, using
from rlaif.models.parts.layers import LayerPath, find_layers
from rlaif.models.parts.rows import RowsBox, RowsKind
from rlaif.models.parts.view import Box, Skip, shallow, with_modules


class Decoder:
    """Where the parts of a causal language model are, the same for every copy of it."""

    def __init__(self, lm: nn.Module) -> None:
        """Runs a few tokens through `lm`. Raises UserError if its layers or its head are not found."""
        self.path: LayerPath = find_layers(lm)
        self.head: str = head_path(lm)
        stack = lm.get_submodule(self.path.stack)
        self.num_layers = len(lm.get_submodule(self.path.layers))  # type: ignore[arg-type]
        self.takes_positions = "position_ids" in inspect.signature(stack.forward).parameters
        self.embedding_size: int = lm.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
        self.as_tuple, self.after = self._watch(lm)
        self.after_head = AfterHead(lm, self.path)
        self.rows_kind: RowsKind | None = None

    @torch.no_grad()
    def _watch(self, lm: nn.Module) -> tuple[bool, list[str]]:
        """Run two tokens: do layers return tuples, and which modules of the stack run after the last layer?"""
        order: list[str] = []
        returned: list[Any] = []
        stack, layers = lm.get_submodule(self.path.stack), lm.get_submodule(self.path.layers)
        handles = [
            module.register_forward_pre_hook(lambda *_, n=name: order.append(n))
            for name, module in stack.named_modules()
            if name and next(module.parameters(recurse=False), None) is not None
        ]

        def ended(module: nn.Module, args: Any, out: Any) -> None:
            returned.append(out)
            order.append("")

        handles.append(layers[-1].register_forward_hook(ended))  # type: ignore[index]
        two = torch.arange(2, device=next(stack.parameters()).device)[None]
        try:
            with using(Pass(CAUSAL, 2)):
                run_stack(stack, None, self.takes_positions, ids=two)
        finally:
            for handle in handles:
                handle.remove()
        return isinstance(returned[0], tuple), list(dict.fromkeys(order[order.index("") + 1 :]))

    def layer_paths(self, first: int, end: int) -> list[str]:
        """The paths of layers `first` to `end` - 1."""
        return [f"{self.path.layers}.{index}" for index in range(first, end)]

    def after_paths(self) -> list[str]:
        """The paths of what runs after the last layer and before the head: the final norm, as a rule."""
        return [f"{self.path.stack}.{name}" for name in self.after]


class View:
    """Layers `first` to `end` - 1 of a model, run by its own forward."""

    def __init__(
        self, decoder: Decoder, lm: nn.Module, first: int, end: int, rows: RowsKind | None = None
    ) -> None:
        """With `rows`, the last of the layers gives its outputs at chosen positions only."""
        self._decoder, self._first, self._end, self._name = decoder, first, end, type(lm).__name__
        self.box, self.rows_box = Box(), RowsBox() if rows else None
        own: list[nn.Module] = list(lm.get_submodule(decoder.path.layers).children())
        new = [
            own[i]
            if first <= i < end
            else Skip(own[i], self.box, put=i == first - 1, tap=i == end, as_tuple=decoder.as_tuple)
            for i in range(len(own))
        ]
        if rows is not None and self.rows_box is not None:
            new[end - 1] = rows.make(new[end - 1], self.rows_box)
        replaced: dict[str, nn.Module] = {decoder.path.name: nn.ModuleList(new)}
        if end < len(own):  # what runs behind the last layer is not wanted
            replaced |= {name: nn.Identity() for name in decoder.after}
        self._stack = with_modules(lm.get_submodule(decoder.path.stack), replaced)

    def __call__(
        self,
        inputs: Tensor,
        attend: Attend | None,
        positions: Tensor | None,
        max_position: int | None,
        rows: Tensor | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) of ids (B, T), or of the hidden states (B, T, D) below layer `first`.

        Normalised if the view reaches the last layer. (B, R, D) at positions `rows` (B, R) for a view of rows.
        """
        box, decoder = self.box, self._decoder
        if attend is not None and self._plain and not whole_rows(attend):
            return self._apart(inputs, attend)
        ids = embeds = None
        if self._first == 0:
            ids = inputs
        else:  # only its shape, dtype and device are read
            box.features, embeds = inputs, inputs
            if inputs.shape[-1] != decoder.embedding_size:
                embeds = inputs[..., :1].expand(*inputs.shape[:-1], decoder.embedding_size)
        length = inputs.shape[1]
        if max_position is None:
            max_position = length if positions is None else int(positions.max()) + 1
        if self.rows_box is not None:
            self.rows_box.rows = rows
        last = self._end - 1 if self.rows_box is not None else -1
        current = Pass(CAUSAL if attend is None else attend, max_position, self.rows_box, last, watch)
        if positions is None and decoder.takes_positions:
            positions = torch.arange(length, device=inputs.device).expand(len(inputs), -1)
        try:
            with using(current):
                out = run_stack(self._stack, positions, decoder.takes_positions, ids=ids, embeds=embeds)
            return out if box.tapped is None else box.tapped
        finally:
            box.features = box.tapped = None
            if self.rows_box is not None:
                self.rows_box.rows = self.rows_box.input = self.rows_box.mixed = None

    @property
    def _plain(self) -> bool:
        """A model whose attention is its own would leave out a pattern, and compute something else."""
        return self._stack.config._attn_implementation != NAME  # type: ignore[union-attr]

    def _apart(self, inputs: Tensor, attend: Attend) -> Tensor:
        """The packed row `inputs` (1, L) or (1, L, D), each of its texts run in a row of its own."""
        texts = attend.apart(inputs.device) if isinstance(attend, AttendRows) else None
        if texts is None:
            raise UserError(
                f"{self._name} runs each text in a row of its own with transformers' attention, since ours gives other "
                f"numbers (stage=doctor says where): {type(attend).__name__} cannot be used with it"
            )
        hidden = self(inputs[0][texts.places], None, None, None)
        return hidden.flatten(0, 1)[texts.back][None]


def generate(
    lm: Any,
    start: Tensor,
    steps: int,
    draw: Callable[[Tensor, Tensor], Tensor],
    ended: Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    use_cache: bool,
) -> Tensor:
    """Rows (B, T) that begin with `start` (B, S), from transformers' own loop, with its cache or without any.

    Args:
        steps: most tokens after `start`.
        draw: the logits (B, V), of which the largest is taken, from the rows so far and the model's logits (B, V).
        ended: whether each row (B,) is complete, from the rows so far; all go on until every one is.
    """
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    lm = shallow(lm)
    lm.generation_config = GenerationConfig()  # a checkpoint's own may change how tokens are drawn
    return lm.generate(
        start,
        attention_mask=torch.ones_like(start),  # a pad may be a word
        generation_config=GenerationConfig(max_new_tokens=steps, do_sample=False, use_cache=use_cache),
        logits_processor=LogitsProcessorList([draw]),
        stopping_criteria=StoppingCriteriaList([] if ended is None else [ended]),
    )


def run_stack(
    stack: nn.Module,
    positions: Tensor | None,
    takes_positions: bool,
    *,
    ids: Tensor | None = None,
    embeds: Tensor | None = None,
) -> Tensor:
    """The last hidden states of a stack of layers without a cache of transformers'."""
    given: dict[str, Any] = {"input_ids": ids} if embeds is None else {"inputs_embeds": embeds}
    if takes_positions and positions is not None:
        given["position_ids"] = positions
    return stack(**given, use_cache=False)[0]
