"""Keep torch.compile out of the hooks, which it would otherwise compile into graphs that ignore the function mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch._C._dynamo.eval_frame import (  # importing torch._dynamo would take seconds
    _FrameAction,
    _FrameExecStrategy,
    set_code_exec_strategy,
    set_eval_frame,
)

Compiler = Any
"""torch.compile's callback in a thread: None if nothing is compiled."""


def never_compile(function: Callable[..., Any]) -> None:
    """Exclude the code of a function, and of its wrappers, from compilation. Functions that it calls are compiled."""
    inner: Any = function
    while inner is not None:
        set_code_exec_strategy(inner.__code__, _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.DEFAULT))
        inner = getattr(inner, "__wrapped__", None)


def set_compiler(compiler: Compiler) -> Compiler:
    """Set torch.compile's callback for this thread (None disables it). Return the previous callback."""
    return set_eval_frame(compiler)
