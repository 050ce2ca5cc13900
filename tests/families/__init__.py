"""The table of model families of diffusers: small models with random weights."""

from .early_transformers import FAMILIES as EARLY_TRANSFORMERS
from .family import Attention, Family
from .transformers import FAMILIES as TRANSFORMERS
from .unets import FAMILIES as UNETS
from .video import FAMILIES as VIDEO

FAMILIES = [*UNETS, *EARLY_TRANSFORMERS, *TRANSFORMERS, *VIDEO]

PAGE = """# Model families

entropy-probe has no code for specific models. It intercepts torch's `scaled_dot_product_attention`. The families
below are tested with small models of the real diffusers classes, with random weights, at three sizes. For each
family, the tests check that

- every attention call is recorded with the correct layer, kind, axes and token grid;
- its entropy equals the entropy of an explicit attention in float64;
- the output is bit-identical with and without the measurement.

`python -m tests.families` generates this page from the table that the tests use.

| kind | attention |
|---|---|
| `self` | between image tokens |
| `joint` | image and text tokens in one softmax |
| `cross` | from image tokens to other tokens |
| `text` | between words |

Laws scale `self` and `joint`, except attention with only the axis `temporal`. N and T count the image tokens. Some
configurations, for example of Flux and LTX-Video, do not contain the training size. Then the default size of the
pipeline is used. For a bare denoiser, set `training_tokens`.

| family | pipeline | attention | latent pixels per token | position of the image tokens | notes |
|---|---|---|---|---|---|
{rows}

## Guidance

The column `branch` separates the two halves of guidance. This works if guidance is one batched call, with the prompts
first or last, and if it is two calls per step. The tests check whole pipelines: the rows of `cond` equal the rows of
a run without guidance. The order in OmniGen, PRX and Stable Cascade's decoder is taken from their source code. The
part of the batch that perturbed-attention guidance (PAG) adds is called `perturbed`; the layers that PAG skips have
no softmax there. Two cases are not separated: guidance in three parts with an input image (OmniGen), and guiders
other than classifier-free guidance.

## Samples and denoisers

`sample` counts images or videos. If the frames or positions of a video are attended to separately, they have the same
`sample`. Pipelines with two denoisers, such as Wan 2.2, are refused. Capture `pipe.transformer` and
`pipe.transformer_2` separately.

## Joint attention

The tensors that the model concatenates show where the image tokens are. The measured rows belong to the image
tokens, and their entropy is split: `image_mass` is the fraction of the attention on image keys, `image_entropy` and
`text_entropy` are the entropies within the two parts, and `mass_entropy` is the entropy of the split. If the position
is unknown, all rows are measured, these columns are empty, and a warning is shown.

## Other torch modules

Any torch module works. The tests compare BERT (MiniLM with its trained weights), CLIP, ViT, GPT-2 with its cache, and
Llama and Qwen2 with grouped heads while they generate, with the attention maps that transformers returns. They
compare a ViT in the style of timm with timm's own unfused attention.

N includes a class token. If the configuration contains the patch size, as in transformers, the class token makes the
attention `joint`, and the patches have a grid. Otherwise, as in timm, the attention is `self`, and the grid is the
one with the number of tokens. With a class token such a grid does not exist, so the attention distance is missing.

## Adapters and execution modes

These work and are tested: LoRA, T2I-Adapter, ControlNet, IP-Adapter (its image tokens are one more `cross` call per
layer), image to image, and inpainting. So do autocast, inference mode, gradients, channels last, fused projections,
layerwise casting and group offloading, and accelerate's offloading of a model, of its modules, and to disk. Two
pipelines can be measured at the same time: alternately, one between the steps of the other, or in separate threads.

A capture or a law on a pipeline covers its denoiser. A ControlNet, or another module that runs attention in the
sampling steps, is separate, and a warning names it: use `ep.capture(pipe.controlnet)`, and
`ep.scaled(pipe.controlnet, law, training_tokens={{layer: T}})`, because its configuration has no training size. T is
that of the layer of the same name in the UNet: `scaling.frame()` of the UNet's law lists it.

`ep.sweep` passes `pipeline_kwargs={{"image": image}}` to the pipeline: this works and is tested for image to image,
inpainting, ControlNet, DDPM (without prompts) and DiT (`class_labels`).

## `entropy-probe info`

`info` is tested with a whole pipeline of each family, loaded from a folder, with three exceptions. OmniGen needs
torchvision. transformers 5 cannot load the text encoder of PRX again. Stable Cascade's decoder needs the output of
its prior, so capture your own call there. `info` samples until the denoiser has run once. Z-Image and HunyuanVideo
1.5 have no known training size, so `info` requires `--sizes`. HiDream always generates about a million pixels,
regardless of the size.

## Not supported

Attention that does not call torch's function cannot be measured. If it is an attention layer, the error names it.
This concerns the flash-attn, sage, xformers, flex and hub-kernel backends of diffusers, sliced and eager processors,
transformers with `attn_implementation="eager"`, attention that a module computes by hand, and
`nn.MultiheadAttention`. Of these backends, the tests run only flex, which needs no additional package. diffusers
calls all of them from the same place, and the error only depends on whether torch's function was called while the
layer ran. A model that was compiled with `torch.compile` before the measurement is refused.

## Adding a model

    with ep.capture(pipe) as captured:
        pipe("a red apple")
    captured.frame()
"""


def page() -> str:
    """Return docs/models.md."""
    return PAGE.format(rows="\n".join(_row(family) for family in FAMILIES))


def _row(family: Family) -> str:
    kinds = dict.fromkeys(_describe(attention) for attention in family.attention.values())
    strides = sorted({attention.stride for attention in family.attention.values() if attention.stride})
    notes = [family.notes] if family.notes else []
    notes += [f"`{name}` (over text tokens) does not use torch's function: not measured" for name in family.hidden]
    notes += ["linear self-attention has no softmax: an error names it"] if family.linear else []
    cells = [family.name, f"`{family.pipeline}`", ", ".join(kinds), ", ".join(map(str, strides))]
    cells += [family.image or "", "; ".join(notes)]
    return "| " + " | ".join(cells) + " |"


def _describe(attention: Attention) -> str:
    return attention.kind if attention.axes == "spatial" else f"{attention.kind} ({attention.axes})"
