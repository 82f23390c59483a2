"""Where the decoder layers of a causal language model are. Nothing here knows an architecture's name."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from rlaif.errors import UserError


@dataclass(frozen=True)
class LayerPath:
    """`stack`: path of the module that runs embedding, layers and final norm; `name`: its list of layers."""

    stack: str
    name: str

    @property
    def layers(self) -> str:
        """The path of the list of layers."""
        return f"{self.stack}.{self.name}"


def find_layers(lm: nn.Module) -> LayerPath:
    """The decoder layers of a causal language model. Raises UserError if there is no such list, or several.

    Of several lists with one entry per layer (some architectures keep norms in one), the layers are what transformers
    can checkpoint.
    """
    count = lm.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
    lists = [(n, p) for n, p in lm.named_modules() if isinstance(p, nn.ModuleList) and len(p) == count]
    outer = [(n, p) for n, p in lists if not any(n.startswith(f"{other}.") for other, _ in lists)]
    if len(outer) > 1:
        outer = [(n, p) for n, p in outer if hasattr(type(p[0]), "gradient_checkpointing")]
    if len(outer) != 1:
        raise UserError(
            f"{type(lm).__name__} has {len(outer)} lists of {count} layers, not one: it cannot be split"
        )
    stack, _, name = outer[0][0].rpartition(".")
    if not stack:
        raise UserError(
            f"{type(lm).__name__} has its layers beside its head, not in a module below: it cannot be split"
        )
    return LayerPath(stack, name)
