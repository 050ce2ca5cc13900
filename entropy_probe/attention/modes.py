"""The function mode that sees torch's attention calls, and the stack of modes that a forward must restore."""

from __future__ import annotations

import types
from collections.abc import Callable
from contextlib import _GeneratorContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from entropy_probe.attention.joint import CONCATENATIONS
from entropy_probe.attention.thread_state import Running, ThreadState

TORCH_SDPA: Callable[..., Tensor] = torch._C._nn.scaled_dot_product_attention
"""torch's own function, also while `torch.nn.functional` contains a replacement. A replacement may call it."""


class CallMode(TorchFunctionMode):
    """Replaces torch's attention while a hooked module runs in this thread.

    Args:
        state: the modules that each thread runs.
        attend: is called instead of `scaled_dot_product_attention`, with the same arguments.
        note: receives the function, arguments and result of every concatenation and linear projection, and of every
            function during a discovery.
    """

    def __init__(self, state: ThreadState, attend: Callable[..., Tensor], note: Callable[..., None]) -> None:
        super().__init__()
        self._state, self._attend, self._note = state, attend, note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._state.running:
            return func(*args, **kwargs)
        if func is TORCH_SDPA:
            return self._attend(*args, **kwargs)
        result = func(*args, **kwargs)
        if self._state.discovering or func in CONCATENATIONS or func is F.linear:
            self._note(func, args, kwargs, result)
        return result


def mode_depth() -> int:
    """Return the number of function modes that are active in this thread.

    >>> mode_depth()
    0
    """
    return int(torch._C._len_torch_function_stack())


def push_mode(mode: TorchFunctionMode) -> None:
    """Activate a mode in this thread, until `restore` removes it."""
    torch._C._push_on_torch_function_stack(mode)


def take_out(mode: TorchFunctionMode) -> int | None:
    """Deactivate a mode below others. Return its level for `put_back`; None if it is not active.

    >>> mode = TorchFunctionMode()
    >>> with mode, TorchFunctionMode():
    ...     level = take_out(mode)
    ...     print(level, mode_depth())
    ...     put_back(mode, level)
    ...     print(mode_depth())
    0 1
    2
    """
    above: list[TorchFunctionMode] = []
    try:
        while mode_depth():
            above.append(torch._C._pop_torch_function_stack())
            if above[-1] is mode:
                above.pop()
                return mode_depth()
    finally:
        for other in reversed(above):
            push_mode(other)
    return None


def put_back(mode: TorchFunctionMode, level: int | None) -> None:
    """Activate a mode at the level that `take_out` returned. This may run twice."""
    if level is None or is_active(mode):
        return
    above = [torch._C._pop_torch_function_stack() for _ in range(mode_depth() - level)]
    for other in (mode, *reversed(above)):
        push_mode(other)


def is_active(mode: TorchFunctionMode) -> bool:
    """Return whether a mode is active in this thread."""
    return any(torch._C._get_function_stack_at(level) is mode for level in range(mode_depth()))


def restore(running: list[Running], height: int, depth: int) -> None:
    """Remove the modules and the call modes above these levels; the modes of other libraries stay active."""
    del running[height:]
    others = []
    while mode_depth() > depth:
        mode = torch._C._pop_torch_function_stack()
        if not isinstance(mode, CallMode):
            others.append(mode)
    for mode in reversed(others):
        push_mode(mode)


def finish_contexts(interrupted: types.TracebackType | None) -> None:
    """Run the exits that an interruption prevented. Call this before the modes are restored.

    torch's Python functions remove a mode from the stack while they handle it, in a context made from a generator. An
    interruption between that generator and its `with` statement leaves the generator suspended. Python would then put
    the mode back when it deletes the traceback, long after this forward.

    Args:
        interrupted: the traceback of the KeyboardInterrupt.
    """
    while interrupted is not None:
        frame, interrupted = interrupted.tb_frame, interrupted.tb_next
        if frame.f_code in _CONTEXT_CODE:
            frame.clear()


_CONTEXT_CODE = (_GeneratorContextManager.__enter__.__code__, _GeneratorContextManager.__exit__.__code__)
