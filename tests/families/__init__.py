"""Model families of diffusers, small and with random weights: the matrix."""

from .family import Attention, Family
from .transformers import FAMILIES as TRANSFORMERS
from .unets import FAMILIES as UNETS
from .video import FAMILIES as VIDEO

FAMILIES = [*UNETS, *TRANSFORMERS, *VIDEO]

PAGE = """# Models

A model needs no code: what is seen is the call of torch's `scaled_dot_product_attention` itself. This page is
generated from the table that the tests run over (`python -m tests.families`): small models of the real diffusers
classes with random weights, at three sizes. For each, every such call is seen and named, its kind, axes and token
grid are right, its entropy equals that of an attention written out in float64, and the output is the same to the
bit.

`self`: image tokens among themselves; `joint`: image and text tokens in one softmax; `cross`: image tokens attend
to something else; `text`: words among themselves. Laws scale `self` and `joint`, not what is only `temporal`; N and
T count the image tokens. Where the configuration does not tell the training size, as Flux's or LTX-Video's, the
pipeline's default size counts; a bare denoiser is told (`training_tokens`).

| family | pipeline | attention | latent pixels a token | image tokens stand | |
|---|---|---|---|---|---|
{rows}

Guidance is told apart (`branch`) whether it is one batched call, with the prompts in front or behind, or two
calls to a step: through whole pipelines, what is called `cond` equals what runs without guidance. The order of
OmniGen, PRX and Stable Cascade's decoder is taken from their source. What perturbed-attention guidance (PAG) adds to
the batch is called `perturbed`; the layers that it leaves out have no softmax there. Not told apart: guidance in three
parts with an input image (OmniGen), and a guider other than classifier-free guidance.
`sample` counts images or videos: frames and places of a video that are attended to apart share it. A pipeline of two
denoisers, as Wan 2.2, is refused: give each by itself, `pipe.transformer` and `pipe.transformer_2`.
In a joint attention, where the image tokens stand is told by what the model concatenates. Its rows are then those
of the image tokens and taken apart: `image_mass` is the share of the attention that goes to image keys,
`image_entropy` and `text_entropy` the entropy within each part, `mass_entropy` that of the choice between them. Where
it is not told, the rows are all there are, these columns are empty, and a warning says so.

Any other torch module will do: the tests hold BERT (MiniLM with its trained weights), CLIP, ViT and GPT-2 with its
cache against the attention maps that transformers itself returns, and a ViT as timm writes it against timm's own
unfused attention. N counts a class token. A configuration tells the patch size, as in transformers: the class token
then makes the attention `joint`, and the patches have their grid. Without one, as in timm, it is `self`; the grid is
that of as many patches as tokens, so with a class token there is none, and no attention distance.

Adapters change nothing: tried with LoRA, T2I-Adapter, ControlNet and IP-Adapter (whose image tokens are one more
`cross` call of each layer), image to image and inpainting. Nor do the ways of running a model: autocast, inference
mode, gradients, channels last, fused projections, layerwise casting, group offloading, and accelerate's offloading of
a model, of its modules one by one and to disk. Two pipelines are measured at once, in turns, one between the steps of
the other, or in threads of their own; one model in two threads is not.

`entropy-probe info` is tried, from a folder on disk, on a whole pipeline of each family but three: OmniGen's needs
torchvision, transformers 5 does not read the text encoder of PRX back, and Stable Cascade's decoder starts from what
its prior has made (capture a call of your own there). It samples until the denoiser has run once. Z-Image and
HunyuanVideo 1.5 do not tell their training size: `info` asks for `--sizes`. HiDream draws about a million pixels
whatever is asked of it.

Not seen, and named in an error where they are attention layers: attention that is not torch's own call (flash-attn,
sage, xformers, flex and hub-kernel backends of diffusers), sliced and eager processors, and `nn.MultiheadAttention`.
Of the backends, the tests run flex alone, which needs no package: diffusers calls each of them from the same place
instead of torch's function, and the error asks only whether that function was called while the layer ran, not what was
called instead. A model inside `torch.compile` is refused.

## Adding a model

    with ep.capture(pipe) as captured:
        pipe("a red apple")
    captured.frame()
"""


def page() -> str:
    """The page of the matrix, as Markdown."""
    return PAGE.format(rows="\n".join(_row(family) for family in FAMILIES))


def _row(family: Family) -> str:
    kinds = dict.fromkeys(_words(attention) for attention in family.attention.values())
    strides = sorted({attention.stride for attention in family.attention.values() if attention.stride})
    notes = [family.notes] if family.notes else []
    notes += [f"`{name}`, over words, is not torch's own call and not seen" for name in family.hidden]
    notes += ["linear self-attention has no softmax and is named, not measured"] if family.linear else []
    cells = [family.name, f"`{family.pipeline}`", ", ".join(kinds), ", ".join(map(str, strides))]
    cells += [family.image or "", "; ".join(notes)]
    return "| " + " | ".join(cells) + " |"


def _words(attention: Attention) -> str:
    return attention.kind if attention.axes == "spatial" else f"{attention.kind} ({attention.axes})"
