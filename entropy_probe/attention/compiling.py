"""Keep torch.compile out of the hooks, which it would otherwise compile into graphs that ignore the function mode."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType
from typing import Any

from torch._C._dynamo import eval_frame  # importing torch._dynamo would take seconds

Compiler = Any
"""torch.compile's callback in a thread: None if nothing is compiled."""


def never_compile(function: Callable[..., Any]) -> None:
    """Exclude the code of a function, and of its wrappers, from compilation. Functions that it calls are compiled."""
    inner: Any = function
    while inner is not None:
        _skip(inner.__code__)
        inner = getattr(inner, "__wrapped__", None)


def set_compiler(compiler: Compiler) -> Compiler:
    """Set torch.compile's callback for this thread (None disables it). Return the previous callback."""
    return eval_frame.set_eval_frame(compiler)


def _skip(code: CodeType) -> None:
    api: Any = eval_frame
    if hasattr(api, "skip_code"):  # torch 2.5
        api.skip_code(code)
    else:
        api.set_code_exec_strategy(code, api._FrameExecStrategy(api._FrameAction.SKIP, api._FrameAction.DEFAULT))
