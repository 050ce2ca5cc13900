"""Shape checks at run time, and the small pipeline that most tests sample."""

import os
import signal
import sys
from pathlib import Path

# One thread per process: pytest-xdist runs one process per core, and threads that share a core wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

# For `benchmarks`, `recipes` and `research`. Last on the path: an installed entropy_probe comes first.
sys.path.append(str(Path(__file__).parents[1]))

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a shell; its children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

if not torch.cuda.is_available():
    os.environ.setdefault(
        "TRITON_INTERPRET", "1"
    )  # the kernel for CUDA runs on the CPU; Triton asks on its first import

with install_import_hook([f"entropy_probe.{p}" for p in ("statistics", "attention", "laws")], "beartype.beartype"):
    import entropy_probe.attention
    import entropy_probe.laws
    import entropy_probe.statistics  # noqa: F401

from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from entropy_probe.models import sample_images
from recipes.loop import learn_tokenizer

ROOT = Path(__file__).parents[1]

hypothesis.settings.register_profile("untimed", deadline=None)  # the time of an example depends on the machine
hypothesis.settings.load_profile("untimed")


def pytest_collection_modifyitems(items):
    """Skip what needs a clone. Start with the files that have slow tests: no process waits for the last of them."""
    if not (ROOT / "data" / "reference").is_dir():
        for item in items:
            if item.get_closest_marker("clone"):
                item.add_marker(pytest.mark.skip(reason="needs a clone of the repository"))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A saved StableDiffusionPipeline with random weights: 64 px, 16 x 16 latents, two levels of attention."""
    torch.manual_seed(0)
    tokenizer = learn_tokenizer(["noto red apple", "flat pizza"], 300)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        attention_head_dim=(2, 4), cross_attention_dim=32, norm_num_groups=8,
    )  # fmt: skip
    for name, parameter in unet.named_parameters():
        if name.endswith(("attn1.to_q.weight", "attn1.to_k.weight")):
            parameter.data *= 5  # random projections attend almost uniformly; these have something to measure
    channels = dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (8, 8, 8))
    blocks = dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), (1, 1, 1))
    vae = AutoencoderTiny(**channels, **blocks, latent_channels=4)
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=False, steps_offset=1)
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_folder):
    from entropy_probe.models import load

    return load(tiny_folder, device="cpu")


@pytest.fixture
def sample(tiny_pipeline):
    """Sample the tiny pipeline: two prompts, seeds 0 and 1, three steps."""

    def run(size=(64, 64), prompts=("noto red apple", "flat pizza"), steps=3, guidance_scale=4.0):
        seeds = list(range(len(prompts)))
        return sample_images(tiny_pipeline, prompts, size, seeds, steps=steps, guidance_scale=guidance_scale)

    return run
