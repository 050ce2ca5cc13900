"""The table of model families of diffusers: small models with random weights."""

from .early_transformers import FAMILIES as EARLY_TRANSFORMERS
from .family import Attention, Family
from .transformers import FAMILIES as TRANSFORMERS
from .unets import FAMILIES as UNETS
from .video import FAMILIES as VIDEO

FAMILIES = [*UNETS, *EARLY_TRANSFORMERS, *TRANSFORMERS, *VIDEO]

PAGE = """# Models

A model needs no code: `capture` sees every call of torch's `scaled_dot_product_attention`. This page is generated from
the table of the tests (`python -m tests.families`). They run small models of the real diffusers classes, with random
weights, at three sizes. For each, the tests check that every call is found, that its kind, axes and token grid are
right, that its entropy equals that of an attention map in float64, and that the output is bit-identical.

Kinds of attention: `self`: image tokens only; `joint`: image and text tokens in one softmax; `cross`: image queries,
other keys; `text`: text tokens only. Laws scale `self` and `joint`, except attention that is only `temporal`. N and T
count image tokens. If the configuration does not contain the training size, as for Flux or LTX-Video, the default size
of the pipeline is used; for a denoiser without a pipeline, pass `training_tokens`.

| family | pipeline | attention | latent pixels per token | position of image tokens | notes |
|---|---|---|---|---|---|
{rows}

**Guidance.** The column `branch` distinguishes the conditional and unconditional branch, both for one batched call (in
either order) and for two calls per step. Tests of complete pipelines compare `cond` with a run without guidance. The
order of OmniGen, PRX and the Stable Cascade decoder is taken from their source. The extra batch items of
perturbed-attention guidance (PAG) are called `perturbed`; the layers that it bypasses have no softmax there. Not
distinguished: guidance in three parts with an input image (OmniGen), and guiders other than classifier-free guidance.

**Video.** `sample` counts images or videos: frames and positions of a video share a number. A pipeline with two
denoisers, such as Wan 2.2, is refused: pass `pipe.transformer` and `pipe.transformer_2` individually.

**Joint attention.** `capture` finds the position of the image tokens from the tensors that the model concatenates. The
measured rows are then those of the image tokens, and their attention is split: `image_mass` is the fraction of the
attention on image keys, `image_entropy` and `text_entropy` are the entropies within each part, `mass_entropy` is that
of the choice between them. If the position is unknown, all rows are measured, these columns are empty, and a warning
says so.

**Other models.** Every torch module works. The tests compare BERT (MiniLM with its trained weights), CLIP, ViT and
GPT-2 (with a cache) with the attention maps that transformers returns, and a ViT as in timm with timm's unfused
attention. N includes a class token. If the configuration contains the patch size, as in transformers, the class token
makes the attention `joint`, and the patches have a grid. Without a patch size, as in timm, the attention is `self`.
The grid is then that of the number of tokens; with a class token it is missing, and with it the attention distance.

**Adapters and modes.** These change nothing: LoRA, T2I-Adapter, ControlNet, IP-Adapter (its image tokens are one more
`cross` call of each layer), image to image and inpainting; autocast, inference mode, gradients, channels last, fused
projections, layerwise casting, group offloading, and accelerate's offloading of a model, of its modules and to disk.
Two pipelines can be measured at once, alternately or in threads; one model in two threads cannot.

**Command line.** The tests run `entropy-probe info` on a complete pipeline of each family from disk, except three:
OmniGen needs torchvision, transformers 5 cannot load the text encoder of PRX, and the decoder of Stable Cascade needs
the output of its prior (capture a call in Python). `info` samples until the denoiser has run once. Z-Image and
HunyuanVideo 1.5 have no training size: pass `--sizes`. HiDream always samples about a million pixels.

**Not measured.** Attention that does not use torch's function: flash-attn, sage, xformers, flex and hub-kernel
backends of diffusers, sliced and eager processors, and `nn.MultiheadAttention`. An error names these layers if they
are attention layers. The tests run only the flex backend, which needs no package; diffusers selects all backends in
the same place, and the error depends only on whether torch's function was called. A model compiled by `torch.compile`
is refused.

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
