"""`${share:TOTAL,PART,...}` in conf/: a budget, divided by what each unit of something takes of it."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlaif.errors import UserError


def share(total: str, *parts: str | int, _parent_: DictConfig) -> int:
    """The key `total` beside the interpolation's own, over the sum of `parts`: other keys there, or numbers.

    Raises UserError if the division leaves a remainder.
    """
    place = _parent_._get_full_key("")
    whole, sizes = _whole(_parent_[total]), [_whole(_parent_[p]) if isinstance(p, str) else p for p in parts]
    each = sum(sizes)
    if whole % each:
        named = (
            f"{place}.{p}={n}" if isinstance(p, str) else f"{p}" for p, n in zip(parts, sizes, strict=True)
        )
        below, above = whole // each * each, (whole // each + 1) * each
        raise UserError(
            f"{place}.{total}={whole} is no multiple of {' + '.join(named)}: write {place}.{total}="
            f"{f'{below} or ' if below else ''}{above}"
        )
    return whole // each


def _whole(value: Any) -> int:
    """A whole number above 0. Raises ValueError for anything else, of which the key's own rule says what is wrong."""
    number = int(value) if isinstance(value, str) else value
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"{value} is no whole number above 0")
    return number


def refusal(error: BaseException) -> UserError | None:
    """What a resolver has refused, behind OmegaConf's own exception; None if `error` has another cause."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, UserError):
        found = found.__cause__ or found.__context__
    return found


def register() -> None:
    """Make the resolvers known to OmegaConf."""
    OmegaConf.register_new_resolver("share", share, replace=True)
