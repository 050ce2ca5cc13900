"""Declare the command-line options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from entropy_probe.cli.settings import apply_config

MODEL_PANEL = "Model"
GRID_PANEL = "Grid and sampling"
EVALUATION_PANEL = "Scaling laws and evaluation"
EXECUTION_PANEL = "Execution"
OUTPUT_PANEL = "Output"

DEFAULT_OUT = "entropy-run"
DEFAULT_LAWS = "original,paper,measured"


def _complete(*words: str) -> Callable[[str], list[str]]:
    """Return a shell completion that offers these words."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def _not_negative(value: int | None) -> int | None:
    if value is not None and value < 0:
        raise typer.BadParameter("Input should be greater than or equal to 0")
    return value


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        callback=apply_config,
        is_eager=True,
        rich_help_panel=OUTPUT_PANEL,
        help="YAML file with settings named like the flags. Flags override the file. Each run writes a config.yaml.",
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        rich_help_panel=MODEL_PANEL,
        help="Hub id, folder of a diffusers pipeline, .safetensors file, MODULE:FUNCTION that returns a pipeline, or a "
        "bundled model: reference, reference-dit.",
        autocompletion=_complete("reference", "reference-dit"),
    ),
]
StageModelOption = Annotated[
    str | None,
    typer.Option("--model", rich_help_panel=MODEL_PANEL, help="The model, if it has moved since the run was sampled."),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        rich_help_panel=MODEL_PANEL,
        help="cpu, cuda or mps. auto uses cuda, then mps, then cpu, whichever is available first.",
        autocompletion=_complete("auto", "cpu", "cuda", "mps"),
    ),
]
DtypeOption = Annotated[
    str,
    typer.Option(
        rich_help_panel=MODEL_PANEL,
        help="float32, bfloat16 or float16. auto is the dtype of the checkpoint.",
        autocompletion=_complete("auto", "float32", "bfloat16", "float16"),
    ),
]
OutOption = Annotated[
    str, typer.Option(rich_help_panel=OUTPUT_PANEL, help="Run directory: a folder, or a URL such as s3://bucket/run.")
]
SizesOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=GRID_PANEL,
        help="Image sizes in pixels, such as 32,64,96x128. One number is a square; 96x128 is height 96, width 128.",
    ),
]
PromptsOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=GRID_PANEL, help="Text file with one prompt per line, or the number of bundled prompts to use."
    ),
]
SeedsOption = Annotated[
    str | None,
    typer.Option(rich_help_panel=GRID_PANEL, help="Seeds, such as 0,1: one image per seed, prompt and size."),
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=GRID_PANEL, help="Sampling steps. Default: from the model. Other name: --num-inference-steps."
    ),
]
GuidanceOption = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=GRID_PANEL,
        help="Scale of classifier-free guidance; 1 turns guidance off. Default: from the model.",
    ),
]
RowsOption = Annotated[
    str,
    typer.Option(
        rich_help_panel=GRID_PANEL,
        help="Query rows to measure per attention call: all, a number, or auto (enough for an error of 0.01 nats).",
    ),
]
PipelineKwargsOption = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=GRID_PANEL,
        help="YAML file with further arguments of the pipeline's call, such as `image: photo.png` or `strength: 0.8`. "
        "The names of image files are relative to it.",
    ),
]
PromptOption = Annotated[
    list[str] | None,
    typer.Option(rich_help_panel=GRID_PANEL, metavar="<str>", help="A prompt. Repeat the flag for more."),
]
NumFramesOption = Annotated[
    int | None,
    typer.Option(rich_help_panel=GRID_PANEL, help="Frames of each video. Default: from the pipeline."),
]
TrainingFramesOption = Annotated[
    int | None,
    typer.Option(rich_help_panel=GRID_PANEL, help="Frames of the video that T counts. Default: --num-frames."),
]
NegativePromptOption = Annotated[
    str | None, typer.Option(rich_help_panel=GRID_PANEL, help="Negative prompt of all images.")
]
ImageOption = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=GRID_PANEL,
        help="Image that the pipeline starts from: image-to-image, inpainting, ControlNet or image-to-video.",
    ),
]
VariantOption = Annotated[
    str | None, typer.Option(rich_help_panel=MODEL_PANEL, help="Variant of the weights, such as fp16.")
]
BaseOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=MODEL_PANEL,
        help="For a .safetensors file: folder or hub id of the pipeline with its configuration and other components.",
    ),
]
LoraOption = Annotated[
    str | None,
    typer.Option(rich_help_panel=MODEL_PANEL, help="LoRA files, FILE or FILE:SCALE, separated by commas."),
]
OffloadOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=MODEL_PANEL,
        help="model or sequential: keep the weights in the memory of the CPU until the GPU needs them.",
        autocompletion=_complete("model", "sequential"),
    ),
]
QuickOption = Annotated[
    bool,
    typer.Option(
        "--quick",
        rich_help_panel=GRID_PANEL,
        help="Use a small grid for a first look. The default folder is then entropy-run-quick.",
    ),
]
LawsOption = Annotated[
    str,
    typer.Option(
        rich_help_panel=EVALUATION_PANEL, help="Scaling laws by name or JSON file, such as original,paper,law.json."
    ),
]
TokensOption = Annotated[
    str,
    typer.Option(
        rich_help_panel=EVALUATION_PANEL,
        help="What N and T count in joint attention: image tokens, or all tokens as programs for Flux often do.",
        autocompletion=_complete("image", "all"),
    ),
]
RoundsOption = Annotated[
    int | None,
    typer.Option(
        callback=_not_negative,
        rich_help_panel=EVALUATION_PANEL,
        help="Maximum number of rounds that refine the measured law, 0 or more. Default: 3 (run --quick: 1).",
    ),
]
MetricsOption = Annotated[
    str,
    typer.Option(
        rich_help_panel=EVALUATION_PANEL,
        autocompletion=_complete("auto", "critic", "inception", "efficientnet-lite0", "none"),
        help="Networks that score the images, separated by commas: critic (trained on the bundled drawings), "
        "inception, efficientnet-lite0, or the hub id or folder of a CLIP or other image model of transformers. "
        "none skips scoring. auto is the critic for a bundled model, otherwise none.",
    ),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(
        "--real-images",
        rich_help_panel=EVALUATION_PANEL,
        help="Folder of real images. The caption of x.png is the text in x.txt, or the file name if there is none.",
    ),
]
MethodOption = Annotated[
    str,
    typer.Option(
        rich_help_panel=EVALUATION_PANEL,
        help="measured restores the entropy at the training size, and samples again (law.json). gaussian predicts it "
        "from the logit variance, without sampling (gaussian.json). calibrated minimises the denoising loss on real "
        "images (calibrated.json).",
        autocompletion=_complete("measured", "gaussian", "calibrated"),
    ),
]
LevelOption = Annotated[
    str,
    typer.Option(
        rich_help_panel=EVALUATION_PANEL,
        help="What gets its own factor in the measured law: each layer (law.json), each head (law-head.json), or each "
        "head at each step (law-step.json).",
        autocompletion=_complete("layer", "head", "step"),
    ),
]
EngineOption = Annotated[
    str,
    typer.Option(rich_help_panel=EXECUTION_PANEL, help="local samples in this process, ray on a Ray cluster."),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=EXECUTION_PANEL,
        help="Address of the Ray cluster, such as auto. Without it, Ray finds a cluster or starts one here.",
    ),
]
ShardOption = Annotated[
    str,
    typer.Option(rich_help_panel=EXECUTION_PANEL, help="Sample only part i of n of the grid, such as 1/4."),
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        rich_help_panel=EXECUTION_PANEL,
        help="Print the grid with estimated time and disk use, then exit. Samples one cell of some small sizes.",
    ),
]
FiguresOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=OUTPUT_PANEL,
        help="Also write the figures as pdf, png or svg, one panel per file, and the tables in LaTeX and Markdown.",
        autocompletion=_complete("pdf", "png", "svg"),
    ),
]
WidthOption = Annotated[
    str,
    typer.Option(
        rich_help_panel=OUTPUT_PANEL,
        help="Width of the figures: single (3.3 inches) or double (6.9 inches) column.",
        autocompletion=_complete("single", "double"),
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", rich_help_panel=OUTPUT_PANEL, help="Print the result as JSON on standard output.")
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", rich_help_panel=OUTPUT_PANEL, help="Print no progress bars and no summary.")
]
