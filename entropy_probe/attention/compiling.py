"""Keep torch.compile out of the hooks, which it would otherwise compile into graphs that ignore the function mode."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import CodeType
from typing import Any

import torch
from torch import nn
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


def is_compiled(module: nn.Module) -> bool:
    """Return whether a module itself was compiled by torch.compile, in any way; its submodules do not count.

    >>> is_compiled(nn.Identity()), is_compiled(torch.compile(nn.Identity()))
    (False, True)
    """
    return (
        module._compiled_call_impl is not None
        or "_orig_mod" in module._modules
        or hasattr(module.__dict__.get("forward"), "_torchdynamo_orig_callable")
    )


def runs_uncompiled() -> bool:
    """Return whether compiled functions run uncompiled at the moment.

    >>> with torch.compiler.set_stance("force_eager"):
    ...     runs_uncompiled()
    True
    """
    from torch._dynamo import eval_frame as dynamo  # takes seconds, but a compiled model has imported it already

    return getattr(getattr(dynamo, "_stance", None), "stance", None) == "force_eager"


def uncompiled(model: Any) -> AbstractContextManager[Any]:
    """Return a context in which the compiled parts of a module run uncompiled, on torch 2.6 or newer.

    In this context, its attention calls can be measured. Compiled code is kept, and runs again afterwards.
    """
    parts = model.modules() if isinstance(model, nn.Module) else ()
    has_stance = hasattr(torch.compiler, "set_stance")
    return torch.compiler.set_stance("force_eager") if has_stance and any(map(is_compiled, parts)) else nullcontext()


def _skip(code: CodeType) -> None:
    api: Any = eval_frame
    if hasattr(api, "skip_code"):  # torch 2.5
        api.skip_code(code)
    else:
        api.set_code_exec_strategy(code, api._FrameExecStrategy(api._FrameAction.SKIP, api._FrameAction.DEFAULT))
