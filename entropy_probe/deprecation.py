"""Old names of functions, classes and keyword arguments: they work for one release and warn."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def renamed_arguments(**renamed: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that accepts old keyword arguments and warns.

    Args:
        renamed: the new name of each old keyword argument.

    Examples:
        >>> @renamed_arguments(pictures="images")
        ... def count(images):
        ...     return len(images)
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     count(pictures=[1, 2])
        2
        >>> print(caught[0].message)
        count(pictures=...) is deprecated: use images=...
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for old in renamed.keys() & kwargs.keys():
                warn_renamed(f"{function.__name__}({old}=...)", f"{renamed[old]}=...")
                kwargs[renamed[old]] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


def renamed_names(module: str, **renamed: Any) -> Callable[[str], Any]:
    """Return a module `__getattr__` that resolves old names and warns.

    Args:
        module: `__name__` of the module.
        renamed: the object that each old name refers to.

    Examples:
        >>> lookup = renamed_names("shop", judge_for=len)
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     lookup("judge_for")
        <built-in function len>
        >>> print(caught[0].message)
        shop.judge_for is deprecated: use len
    """

    def lookup(name: str) -> Any:
        if name not in renamed:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_renamed(f"{module}.{name}", renamed[name].__name__)
        return renamed[name]

    return lookup


def warn_renamed(old: str, new: str) -> None:
    """Warn the caller of the calling function that `old` is deprecated.

    Args:
        old: the deprecated name or call.
        new: what to use instead.
    """
    warnings.warn(f"{old} is deprecated: use {new}", DeprecationWarning, stacklevel=3)
