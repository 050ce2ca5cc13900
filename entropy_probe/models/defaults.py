"""Number of sampling steps and guidance scale: the choice of the user, or the default of the pipeline."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from entropy_probe.errors import InputError
from entropy_probe.models.sizes import check_guidance, check_steps
from entropy_probe.strict_json import FORBID_UNKNOWN_FIELDS, from_strict_json, read_bounded

SAMPLING_FILE = "sampling.json"
"""Name of the optional file next to `model_index.json`: `{"steps": 8, "guidance_scale": 4.0}`."""


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of a sampling run.

    Attributes:
        steps: number of inference steps.
        guidance_scale: scale of classifier-free guidance; 1 disables guidance.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID_UNKNOWN_FIELDS

    steps: Annotated[int, Field(ge=1)]
    guidance_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)]


FALLBACK = SamplingSettings(steps=8, guidance_scale=4.0)
"""Used for each setting that neither the model's folder nor its class defines."""


def sampling_settings(pipeline: Any, steps: int | None = None, guidance_scale: float | None = None) -> SamplingSettings:
    """Return the settings to sample with: the given values, and `sampling_defaults` for each that is None.

    Raises:
        InputError: if the pipeline cannot sample with them.

    >>> class Pipeline:
    ...     def __call__(self, prompt, num_inference_steps=28, guidance_scale=3.5): ...
    >>> sampling_settings(Pipeline(), steps=4)
    SamplingSettings(steps=4, guidance_scale=3.5)
    """
    defaults = sampling_defaults(pipeline)
    steps = defaults.steps if steps is None else steps
    guidance_scale = defaults.guidance_scale if guidance_scale is None else guidance_scale
    check_steps(pipeline, steps)
    check_guidance(guidance_scale)
    return SamplingSettings(steps, float(guidance_scale))


def sampling_defaults(pipeline: Any) -> SamplingSettings:
    """Return the default steps and guidance scale of a pipeline. Needs no network.

    The first of these that defines a setting is used:

    1. the file `sampling.json` in the local folder from which the pipeline was loaded,
    2. the defaults of `num_inference_steps` and `guidance_scale` in the signature of the pipeline's `__call__`,
    3. 8 steps and a guidance scale of 4.

    Raises:
        InputError: if `sampling.json` exists and is not valid.

    >>> class Pipeline:
    ...     def __call__(self, prompt, num_inference_steps=28, guidance_scale=3.5): ...
    >>> sampling_defaults(Pipeline())
    SamplingSettings(steps=28, guidance_scale=3.5)
    """
    folder = getattr(pipeline, "name_or_path", None)
    if folder and (path := Path(folder) / SAMPLING_FILE).is_file():
        try:
            return from_strict_json(SamplingSettings, read_bounded(path))
        except InputError as error:
            raise InputError(
                f"cannot read the sampling defaults in {path}: {error}. "
                'Write {"steps": 8, "guidance_scale": 4.0}, or delete the file'
            ) from error
    parameters = inspect.signature(type(pipeline).__call__).parameters

    def default(name: str, fallback: float) -> float:
        value = getattr(parameters.get(name), "default", None)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else fallback

    return SamplingSettings(
        steps=int(default("num_inference_steps", FALLBACK.steps)),
        guidance_scale=float(default("guidance_scale", FALLBACK.guidance_scale)),
    )
