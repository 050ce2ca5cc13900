"""What every part of the GPU benchmark gets: the device and the time at which to stop."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Case = TypeVar("Case", bound="DataclassInstance")


@dataclass(frozen=True)
class Setting:
    """The conditions of a part.

    Attributes:
        device: `cuda`, or `cpu` to try the command without a GPU.
        quick: use few and small cases, whose times mean nothing.
        until: value of `time.monotonic()` after which no case starts.
    """

    device: str
    quick: bool
    until: float

    @property
    def seconds_left(self) -> float:
        """Return the seconds until the part must stop, at least 0."""
        return max(0.0, self.until - time.monotonic())

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def measure_cases(cases: Iterable[Case], measure: Callable[[Case], dict[str, Any]], setting: Setting) -> dict[str, Any]:
    """Measure the cases, which are dataclasses, until the time is over.

    An error of one case, such as too little memory, is stored with it and does not stop the others.

    Returns:
        `cases`: the fields of each case with its results or its `error`; `left_out`: number of cases not started.
    """
    found, left_out = [], 0
    for case in cases:
        fields: dict[str, Any] = asdict(case)
        if setting.seconds_left == 0:
            left_out += 1
            continue
        print(f"  {fields}", flush=True)
        try:
            found.append(fields | measure(case))
        except Exception as error:  # on the day there is a GPU, every other result must survive
            traceback.print_exc()
            found.append(fields | {"error": f"{type(error).__name__}: {error}"[:500]})
        if setting.device == "cuda":
            torch.cuda.empty_cache()
    return {"cases": found, "left_out": left_out}
