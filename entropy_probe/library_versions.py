"""Arguments that depend on the version of a library. Only this module compares version numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from packaging.version import Version

_DTYPE_SINCE = {"diffusers": "0.40", "transformers": "4.56"}
"""The first version of each library that reads `dtype`. Older versions of diffusers ignore it without an error."""


def dtype_argument(library: str, dtype: Any) -> dict[str, Any]:
    """Return the dtype under the keyword that `from_pretrained` of the installed library reads.

    Args:
        library: diffusers or transformers.
        dtype: a torch.dtype.

    >>> list(dtype_argument("transformers", "float32"))[0] in ("dtype", "torch_dtype")
    True
    """
    reads_dtype = Version(version(library)) >= Version(_DTYPE_SINCE[library])
    return {"dtype" if reads_dtype else "torch_dtype": dtype}


def rng_argument(function: Callable[..., Any], rng: Any) -> dict[str, Any]:
    """Return a random generator under the keyword that a function of scipy reads: `random_state` before scipy 1.15.

    >>> rng_argument(lambda random_state: None, 0)
    {'random_state': 0}
    """
    return {"rng" if "rng" in inspect.signature(function).parameters else "random_state": rng}
