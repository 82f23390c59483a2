"""Processes for tests, forked from a server that has computed nothing, so that torch has no threads there."""

import multiprocessing
from collections.abc import Callable
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch", "safetensors.torch", "rlaif.app.job", "transformers.models.llama.modeling_llama"]
)


def start(function: Callable[..., None], *arguments: Any) -> Any:
    """Start `function`, which must be defined at module level, in a separate process."""
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process
