"""The hook that takes the place of `forward` on one module."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Sized
from typing import Any, Protocol, no_type_check, runtime_checkable

from torch import nn

from entropy_probe.attention.compiling import Compiler, never_compile, set_compiler


@runtime_checkable
class Interceptor(Protocol):
    """Runs the forwards of hooked modules."""

    @property
    def observers(self) -> Sized:
        """Observers of these forwards."""

    def run(self, hook: ForwardHook, args: tuple[Any, ...], kwargs: dict[str, Any], compiler: Compiler) -> Any:
        """Run the forward of a hooked module."""

    def warn_of_copy(self) -> None:
        """Warn if a deep copy of the model loses its scaling."""


class ForwardHook:
    """Takes the place of `forward` on one module, as an attribute of the instance.

    Args:
        module: the module.
        name: its name in the denoiser.
        interceptor: runs the forward.
    """

    def __init__(self, module: nn.Module, name: str, interceptor: Interceptor) -> None:
        self.module, self.name, self.interceptor = module, name, interceptor
        self.active = False
        self.replaced = module.__dict__.get("forward")
        self.inner: Callable[..., Any] = module.forward
        self.__wrapped__ = self.inner  # for inspect.signature

    def install(self) -> None:
        """Replace `forward` of the module by this hook."""
        self.active = True
        self.module.__dict__["forward"] = self

    def remove(self) -> None:
        """Restore `forward`. If another library has wrapped the hook, it stays in place and passes calls on."""
        self.active = False
        if self.module.__dict__.get("forward") is self:
            before = self.replaced
            while isinstance(before, ForwardHook) and not before.active:  # removed while this hook was in its place
                before = before.replaced
            if before is None:
                del self.module.__dict__["forward"]
            else:
                self.module.__dict__["forward"] = before

    @no_type_check  # shape checks would wrap this in code that torch.compile does not skip
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward of the module, observed if it has observers."""
        if not self.active or not self.interceptor.observers:
            return self.inner(*args, **kwargs)
        compiler = set_compiler(None)
        try:
            return self.interceptor.run(self, args, kwargs, compiler)
        finally:
            set_compiler(compiler)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the forward, such as `__code__`, which torch.export reads."""
        if name == "inner":  # not set yet
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Return the plain forward of the copied module: a copy is neither measured nor scaled."""
        self.interceptor.warn_of_copy()
        if self.replaced is not None:
            return copy.deepcopy(self.replaced, memo)
        return types.MethodType(type(self.module).forward, memo.get(id(self.module), self.module))

    def __reduce__(self) -> Any:
        """Return the plain forward of the module, for pickle and shallow copies."""
        if self.replaced is not None:
            return copy.copy, (self.replaced,)
        return types.MethodType, (type(self.module).forward, self.module)


# torch.compile leaves its graph at hooks, so a law also scales a model that is compiled after the law was applied. The
# attribute keeps a hook out of the graph that calls it, and the other call keeps it from starting a graph.
ForwardHook.__call__._torchdynamo_disable = True
never_compile(ForwardHook.__call__)
