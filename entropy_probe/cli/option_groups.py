"""Groups of options that several commands share; see `grouping`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from entropy_probe.cli.options import (
    BaseOption,
    DeviceOption,
    DtypeOption,
    GuidanceOption,
    ImageOption,
    LoraOption,
    NegativePromptOption,
    NumFramesOption,
    OffloadOption,
    PipelineKwargsOption,
    PromptOption,
    PromptsOption,
    QuickOption,
    RowsOption,
    SeedsOption,
    SizesOption,
    StepsOption,
    TrainingFramesOption,
    VariantOption,
)
from entropy_probe.cli.parsing import parse_names
from entropy_probe.cli.pipeline_kwargs import read_image, read_pipeline_kwargs

if TYPE_CHECKING:
    from entropy_probe.models import ModelSource


@dataclass(frozen=True)
class Plan:
    """Defaults of the grid.

    Attributes:
        prompts: number of bundled prompts.
        seeds: seeds.
        rounds: maximum number of rounds that refine the measured law.
    """

    prompts: int
    seeds: tuple[int, ...]
    rounds: int


FULL = Plan(prompts=8, seeds=(0, 1), rounds=3)
QUICK = Plan(prompts=4, seeds=(0,), rounds=1)


@dataclass(frozen=True)
class LoadOptions:
    """How to load a model."""

    device: DeviceOption = "auto"
    dtype: DtypeOption = "auto"
    variant: VariantOption = None
    base: BaseOption = None
    lora: LoraOption = None
    offload: OffloadOption = None

    def source(self, model: str) -> ModelSource:
        """Return the model with the options to load it."""
        from entropy_probe.models import LoadingOptions, ModelSource

        lora = tuple(parse_names(self.lora or ""))
        return ModelSource(model, LoadingOptions(self.variant, self.base, lora, self.offload))


@dataclass(frozen=True)
class CallOptions:
    """Further arguments of the pipeline's call."""

    num_frames: NumFramesOption = None
    negative_prompt: NegativePromptOption = None
    image: ImageOption = None
    pipeline_kwargs: PipelineKwargsOption = None

    def read(self) -> dict[str, Any]:
        """Return the arguments. A flag replaces the value in the file.

        Raises:
            InputError: if the file or an image cannot be read.
        """
        flags = {
            "num_frames": self.num_frames,
            "negative_prompt": self.negative_prompt,
            "image": None if self.image is None else read_image(self.image),
        }
        given = {name: value for name, value in flags.items() if value is not None}
        return read_pipeline_kwargs(self.pipeline_kwargs) | given


@dataclass(frozen=True)
class GridOptions:
    """The grid, as given on the command line; None means the default."""

    sizes: SizesOption = None
    prompts: PromptsOption = None
    prompt: PromptOption = None
    seeds: SeedsOption = None
    steps: StepsOption = None
    guidance_scale: GuidanceOption = None
    rows: RowsOption = "auto"
    training_frames: TrainingFramesOption = None
    quick: QuickOption = False

    @property
    def plan(self) -> Plan:
        """The defaults for this grid."""
        return QUICK if self.quick else FULL
