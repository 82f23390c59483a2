"""What transformers does to a checkpoint's weights while it loads them, as far as names show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from torch import nn


def missing_parts(bare: nn.Module, names: Iterable[str]) -> list[str]:
    """Names of weights that a checkpoint with `names` lacks among those that transformers stacks into one.

    These are the weights of a layer's experts, numbered from 0. Stacked, a gap is an expert fewer, and with another
    number behind the last one not even that.
    """
    found: dict[str, dict[tuple[str, str], set[int]]] = defaultdict(lambda: defaultdict(set))
    for name, target in _stacked(bare, names):
        number = _last_number(name)
        if number is not None:
            before, value, after = number
            found[target][before, after].add(value)
    gaps = []
    for parts in found.values():
        count = max(max(values) for values in parts.values()) + 1
        for (before, after), values in parts.items():
            gaps += [f"{before}{value}{after}" for value in sorted(set(range(count)) - values)]
    return sorted(gaps)


def _stacked(bare: nn.Module, names: Iterable[str]) -> Iterable[tuple[str, str]]:
    """(a weight's name in the checkpoint, the name of the module's weight that it becomes a part of)."""
    rename, wanted = renaming(bare), bare.state_dict()
    for name in sorted(names):
        target, pattern = rename(name)
        if pattern is not None and "*" in pattern and target in wanted:
            yield name, target


def taken_for_others(bare: nn.Module, paths: Iterable[str]) -> list[str]:
    """Of the linear layers at `paths`, the last names of those that PEFT takes for other weights.

    It reads an adapter as if its names were a checkpoint's: where checkpoints keep the experts' weights apart under a
    scheme that several types share, it looks for every layer so named among the experts, and it renames the others.
    """
    from transformers.conversion_mapping import _MODEL_TO_CONVERSION_PATTERN

    rename, found = renaming(bare), set()
    shared = bare.config.model_type in _MODEL_TO_CONVERSION_PATTERN  # type: ignore[union-attr]
    experts = _merged_names(bare) if shared else set()
    for path in sorted(paths):
        last, name = path.rpartition(".")[2], f"{path}.weight"
        if last in experts or rename(name)[0] != name:
            found.add(last)
    return sorted(found)


def _merged_names(bare: nn.Module) -> set[str]:
    """The last names of a checkpoint's linear layers that become a part of another weight, such as `gate_proj`."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    patterns = [
        pattern
        for entry in get_model_conversion_mapping(bare)
        if isinstance(entry, WeightConverter)
        for pattern in entry.source_patterns
        if "*" in pattern
    ]
    return {pattern.removesuffix("$").removesuffix(".weight").rpartition(".")[2] for pattern in patterns}


def renaming(bare: nn.Module) -> Callable[[str], tuple[str, str | None]]:
    """A function of a weight's name in a checkpoint: its name in the module, and what it is converted by, if it is.

    The module's name of several that become one is of the first part. To be called in the order of the names.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(bare)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    wanted = bare.state_dict()

    def rename(name: str) -> tuple[str, str | None]:
        return rename_source_key(name, renamings, converters, str(bare.base_model_prefix), wanted)

    return rename


def _last_number(name: str) -> tuple[str, int, str] | None:
    """A name's last part that is a number, with what is before and after it."""
    parts = name.split(".")
    at = next((i for i in reversed(range(len(parts))) if parts[i].isdigit()), None)
    if at is None:
        return None
    before, after = (
        "".join(f"{part}." for part in parts[:at]),
        "".join(f".{part}" for part in parts[at + 1 :]),
    )
    return before, int(parts[at]), after
