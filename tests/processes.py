"""Processes of tests' own: forked from a server without threads, which a process with torch's is not."""

import multiprocessing
from collections.abc import Callable
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch", "safetensors.torch", "rlaif.models.load", "rlaif.inference.features"]
)


def start(function: Callable[..., None], *arguments: Any) -> Any:
    """Start `function`, which must be one of a module, in a process of its own."""
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process
