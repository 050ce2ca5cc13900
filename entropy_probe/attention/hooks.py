"""The hook that takes the place of `forward` on one module."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Container, Sized
from typing import Any, Protocol, no_type_check, runtime_checkable

from torch import nn

from entropy_probe.attention.compiling import Compiler, never_compile, set_compiler


@runtime_checkable
class Interceptor(Protocol):
    """Runs the forwards of hooked modules."""

    @property
    def observers(self) -> Sized:
        """Observers of these forwards."""

    @property
    def roots(self) -> Container[str]:
        """Names of the modules whose forward is a pass of the denoiser."""

    def run(self, hook: ForwardHook, args: tuple[Any, ...], kwargs: dict[str, Any], compiler: Compiler) -> Any:
        """Run the forward of a hooked module."""

    def warn_of_copy(self) -> None:
        """Warn if a deep copy of the model loses its scaling."""


PLACES = ("forward", "_old_forward")
"""Attributes of a module that can contain its forward. accelerate moves `forward` to `_old_forward`, and back."""


class ForwardHook:
    """Takes the place of `forward` on one module, as an attribute of the instance.

    With accelerate's offloading it takes the place of `_old_forward`, which accelerate calls and puts back. Then it
    stays when accelerate removes its own wrapper and adds it again, as diffusers does after every pipeline call.

    Args:
        module: the module.
        name: its name in the denoiser.
        interceptor: runs the forward.
    """

    def __init__(self, module: nn.Module, name: str, interceptor: Interceptor) -> None:
        self.module, self.name, self.interceptor = module, name, interceptor
        self.active = False
        self._place = PLACES["_old_forward" in module.__dict__]
        self.replaced = module.__dict__.get(self._place)
        self.inner: Callable[..., Any] = getattr(module, self._place)
        self.__wrapped__ = self.inner  # for inspect.signature

    def install(self) -> None:
        """Replace `forward` of the module by this hook."""
        self.active = True
        self.module.__dict__[self._place] = self

    def remove(self) -> None:
        """Restore `forward`. If another library has wrapped the hook, it stays in place and passes calls on."""
        self.active = False
        for place in PLACES:
            if self.module.__dict__.get(place) is self:
                before = self.replaced
                while isinstance(before, ForwardHook) and not before.active:  # removed while this hook was in its place
                    before = before.replaced
                if before is not None:
                    self.module.__dict__[place] = before
                elif place == "forward":
                    del self.module.__dict__[place]
                else:
                    self.module.__dict__[place] = plain_forward(self.module)

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
        if self.name in self.interceptor.roots:  # once for all hooks of a denoiser
            self.interceptor.warn_of_copy()
        if self.replaced is not None:
            return copy.deepcopy(self.replaced, memo)
        return plain_forward(memo.get(id(self.module), self.module))

    def __reduce__(self) -> Any:
        """Return the plain forward of the module, for pickle."""
        if self.replaced is not None:
            return copy.copy, (self.replaced,)
        return plain_forward, (self.module,)


def plain_forward(module: nn.Module) -> Callable[..., Any]:
    """Return the forward of a module's class, as a method of the module."""
    return types.MethodType(type(module).forward, module)


# torch.compile leaves its graph at hooks, so a law also scales a model that is compiled after the law was applied.
# Without the attribute, torch.compile would trace a hook into its caller's graph. `never_compile` also keeps it from
# compiling the hook itself.
ForwardHook.__call__._torchdynamo_disable = True
ForwardHook.__call__._torchdynamo_disable_msg = (
    "entropy_probe measures or scales this module; compile without fullgraph=True, or remove the law"
)
never_compile(ForwardHook.__call__)
