"""A device that is not there: tensors that say they lie on `pretend:0`, while the processor computes them.

What an accelerator refuses, this one refuses: an operation on tensors of both sides and, as on Apple's GPUs, float64.
So a machine without an accelerator finds the tensor that was left behind, and the paths that are taken beside the
processor's. Of an accelerator's own kernels, their rounding and their speed it says nothing; but it notes which
operations it ran.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from operator import attrgetter
from typing import Any

import torch
from jobs import start_job
from pytorch_lightning.accelerators import Accelerator, AcceleratorRegistry
from pytorch_lightning.strategies import SingleDeviceStrategy
from pytorch_lightning.trainer.connectors.accelerator_connector import _AcceleratorConnector
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
_ATEN = torch.ops.aten
# As on a GPU: copies cross the border, and positions to look up may lie on the processor.
_COPIES = {_ATEN._to_copy.default, _ATEN.copy_.default}
_LOOKUPS = {_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default}
_WIDE = (torch.float64, torch.complex128)
_PRODUCTS = {_ATEN.mm.default, _ATEN.bmm.default, _ATEN.addmm.default, _ATEN.baddbmm.default}


OPERATIONS: set[str] = set()  # the names of all that ran on the device


class PretendTensor(Tensor):
    """`inner`, a tensor of the processor, under another device's name."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendTensor:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: PretendTensor) -> None:
        """As `Tensor.data`, which knows nothing of `inner`: a weight made a view of another one follows it."""
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner = value.inner

    def tolist(self) -> list:
        return self.inner.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.detach().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class PretendDevice(TorchDispatchMode):
    """While it is entered, factories and copies know the device; `left` counts the processor's own products."""

    def __init__(self) -> None:
        super().__init__()
        self.left: Counter[str] = Counter()
        self.away: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        here = _names_device(kwargs) or any(isinstance(x, PretendTensor) for x in _tensors((args, kwargs)))
        if func in _PRODUCTS:
            (self.away if here else self.left)[str(func)] += 1
        if not here:
            return func(*args, **kwargs)
        if not _is_composite(func):
            return _compute(func, args, kwargs)
        with self:  # in inference mode an operation made of others comes whole
            return func.decompose(*args, **kwargs)


@cache
def _is_composite(func: Any) -> bool:
    return bool(func._can_decompose())


# Plain recursion: torch's pytrees take five times as long, and this runs at every operation.


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _replaced(value: Any, kind: type[Tensor], replace: Callable[[Any], Tensor]) -> Any:
    """`value` with every tensor of a `kind` replaced."""
    if isinstance(value, kind):
        return replace(value)
    if isinstance(value, dict):
        return {key: _replaced(part, kind, replace) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_replaced(part, kind, replace) for part in value)
    return value


def _names_device(kwargs: dict[str, Any]) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device).type == NAME


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The processor's result under the device's name, unless it goes back to the processor."""
    _refuse_mixture(func, args, kwargs)
    arrives = _names_device(kwargs)
    leaves = kwargs.get("device") is not None and not arrives
    options = {**kwargs, "device": torch.device("cpu")} if arrives else kwargs
    inner_args, inner_kwargs = _replaced((args, options), PretendTensor, attrgetter("inner"))
    result = func(*inner_args, **inner_kwargs)
    OPERATIONS.add(str(func))
    if leaves or (func is _ATEN.copy_.default and not isinstance(args[0], PretendTensor)):
        return result
    _refuse_wide(func, result)
    return return_and_correct_aliasing(func, args, kwargs, _replaced(result, Tensor, PretendTensor))


def _refuse_mixture(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Raise RuntimeError where an accelerator would; a single number may lie on the processor."""
    tensors = list(_tensors((args, kwargs)))
    away = [x for x in tensors if isinstance(x, PretendTensor)]
    left = [x for x in tensors if not isinstance(x, PretendTensor) and x.dim()]
    looks_up = func in _LOOKUPS and isinstance(args[0], PretendTensor)
    if away and left and func not in _COPIES and not looks_up:
        raise RuntimeError(
            f"Expected all tensors to be on the same device: {func} of {[tuple(x.shape) for x in away]} on "
            f"{NAME}:0 and {[tuple(x.shape) for x in left]} on the processor"
        )


def _refuse_wide(func: Any, result: Any) -> None:
    """Raise TypeError, as torch does on an Apple GPU, if `result` has a type that such a device lacks."""
    for x in _tensors(result):
        if x.dtype in _WIDE:
            raise TypeError(f"Cannot convert a {NAME} tensor to {x.dtype}, which the device lacks: {func}")


class PretendAccelerator(Accelerator):
    """One such device for Lightning."""

    def setup_device(self, device: torch.device) -> None: ...

    def teardown(self) -> None: ...

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [torch.device(NAME, 0)]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME


def install(*, apple: bool = False) -> None:
    """Make the device known to torch, Lightning and rlaif; in a process of its own, since nothing takes it back.

    With `apple`, models take the paths of an Apple GPU on it.
    """
    import rlaif.models.attention
    import rlaif.stages.common.context
    import rlaif.stages.common.rewards.classifier

    _setup_privateuseone_for_python_backend(NAME)
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) passes the mode too
    AcceleratorRegistry.register(NAME, PretendAccelerator, description="a device that is not there")
    _AcceleratorConnector._choose_strategy = lambda _: SingleDeviceStrategy(torch.device(NAME, 0))
    for module in (rlaif.stages.common.context, rlaif.stages.common.rewards.classifier):
        module.resolve_device = lambda _: NAME
    if apple:
        rlaif.models.attention.PLAIN += (NAME,)


def summary_of(words: Sequence[str]) -> dict[str, Any]:
    """Run one job here; its summary."""
    record = start_job(words)
    assert record is not None
    return record.summary


def run_jobs(jobs: Sequence[Sequence[str]], apple: bool, answer: Any) -> None:
    """Puts (summary, products on the device, those on the processor, operations so far) of each job, or its error."""
    install(apple=apple)
    for words in jobs:
        with PretendDevice() as device:
            try:
                answer.put((summary_of(words), device.away.total(), device.left.total(), set(OPERATIONS)))
            except Exception:
                answer.put(traceback.format_exc())


def mixtures(answer: Any) -> None:
    """Puts what the device says to tensors of both sides."""
    install()
    found: dict[str, str] = {}

    def attempt(name: str, action: Callable[[], Tensor]) -> None:
        try:
            found[name] = str(action().device)
        except (RuntimeError, TypeError) as error:
            found[name] = str(error)

    with PretendDevice():
        away, left = torch.ones(2, 3, device=NAME), torch.ones(2, 3)
        attempt("sum", lambda: away + left)
        attempt("product", lambda: left.T @ away)
        attempt("mask", lambda: away.masked_fill(left > 0, 0.0))
        attempt("lookup here", lambda: left[torch.zeros(2, dtype=torch.long, device=NAME)])
        attempt("lookup there", lambda: away[torch.zeros(2, dtype=torch.long)])
        attempt("number", lambda: away * torch.tensor(2.0))
        attempt("float64 there", lambda: away.double())
        attempt("float64 sent", lambda: torch.ones(2, dtype=torch.float64).to(NAME))
        attempt("float64 made", lambda: torch.ones(2, dtype=torch.float64, device=NAME))
        attempt("float64 back", lambda: away.cpu().double())
        attempt("back", lambda: away.cpu() + left)
        attempt("forth", lambda: away + left.to(NAME))
        joined, weight = torch.zeros(4, 3, device=NAME), torch.nn.Parameter(away)
        weight.data = joined[:2]
        weight.detach().copy_(torch.full((2, 3), 5.0))
        found["written into a view"] = str(joined.sum().item())
    answer.put(found)
