"""The kind of each call: which tokens attend to which, where the image is among them, and what N counts."""

import math
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from diffusers import Kandinsky5T2IPipeline, Kandinsky5Transformer3DModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.embeddings import IPAdapterPlusImageProjection, MultiIPAdapterImageProjection
from families.truth import eager, entropy
from torch import nn

from entropy_probe import capture, scaled
from entropy_probe.attention import Latents, attention_calls
from entropy_probe.attention.latents import find_latents
from entropy_probe.attention.roles import Surroundings, role
from entropy_probe.laws import Constant


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def scales(model, run):
    """Return the scale of every attention call as it reaches torch, by layer and shape."""
    found = []
    with attention_calls(model, lambda call: found.append(call), after_scaling=True):
        run()
    return [(call.layer, call.query.shape[2], call.key.shape[2], call.scale) for call in found]


def factors(model, run):
    """Return the factor by which the paper's law multiplies each call."""
    before = scales(model, run)
    with scaled(model, "paper"):
        after = scales(model, run)
    return {one[:3]: other[3] / one[3] for one, other in zip(before, after, strict=True)}


# Context in several calls, or as a tuple


def add_ip_adapter(unet, tokens):
    torch.manual_seed(1)
    keys, width = {}, unet.config.cross_attention_dim
    for number, name in enumerate(name for name in unet.attn_processors if ".attn2." in name):
        features = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        keys |= {f"{2 * number + 1}.to_{part}_ip.weight": torch.randn(features, width) for part in "kv"}
    simple = {
        "proj.weight": torch.randn(4 * width, 8), "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width),
    }  # fmt: skip
    unet._load_ip_adapter_weights([{"image_proj": simple, "ip_adapter": keys}])
    if tokens != 4:
        plus = IPAdapterPlusImageProjection(
            embed_dims=8, output_dims=width, hidden_dims=64, depth=1, dim_head=32, heads=2, num_queries=tokens
        )
        unet.encoder_hid_proj = MultiIPAdapterImageProjection([plus.eval()])


@pytest.mark.parametrize(("tokens", "side"), [(16, 8), (16, 16), (4, 8), (64, 16)])
def test_tokens_of_an_image_prompt_are_a_context(tiny_folder, tokens, side):
    """The number of tokens of the image prompt is that of the image in one of the layers."""
    from entropy_probe.models import load

    unet = load(tiny_folder, device="cpu").unet
    add_ip_adapter(unet, tokens)
    embeds = torch.randn(2, 1, 9, 8, generator=generator()) if tokens != 4 else torch.randn(2, 1, 8)
    inputs = (torch.randn(2, 4, side, side, generator=generator()), torch.tensor(500), torch.randn(2, 16, 32))

    @torch.no_grad()
    def run():
        unet(*inputs, added_cond_kwargs={"image_embeds": [embeds]})

    with capture(unet, rows="all") as captured:
        run()
    frame = captured.frame()
    own = frame["layer"].str.contains("attn1")
    assert set(frame.loc[own, "kind"]) == {"self"}
    assert set(frame.loc[frame["layer"].str.contains("attn2"), "kind"]) == {"cross"}
    g = math.sqrt(math.log(side**2) / math.log(16**2)), math.sqrt(math.log(side**2 / 4) / math.log(8**2))
    for (layer, queries, _), factor in factors(unet, run).items():
        expected = g[queries != side**2] if "attn1" in layer else 1.0
        assert factor == pytest.approx(expected), layer


# Attention that images share


class SharedProcessor(AttnProcessor2_0):
    """Each image also attends to the first image of the batch, as in StyleAligned."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **others):
        if encoder_hidden_states is not None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, **others)
        query, key, value = (
            layer(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        key, value = (torch.cat([x, x[:1].expand_as(x)], dim=2) for x in (key, value))
        out = F.scaled_dot_product_attention(query, key, value)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


class ReferenceProcessor(AttnProcessor2_0):
    """Each image also attends to another image, which the layer receives after its own tokens."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **others):
        if encoder_hidden_states is None:
            encoder_hidden_states = torch.cat([hidden_states, hidden_states.flip(0)], dim=1)
        return super().__call__(attn, hidden_states, encoder_hidden_states, **others)


class ViewsProcessor(AttnProcessor2_0):
    """The images of a batch attend to each other as one, as in MVDream."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **others):
        if encoder_hidden_states is not None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, **others)
        together = hidden_states.unflatten(0, (-1, 2)).flatten(1, 2)
        return super().__call__(attn, together, **others).unflatten(1, (2, -1)).flatten(0, 1)


@pytest.mark.parametrize("processor", [SharedProcessor, ReferenceProcessor, ViewsProcessor])
def test_shared_attention_counts_the_tokens_of_all_its_images(tiny_folder, processor):
    from entropy_probe.models import load

    unet = load(tiny_folder, device="cpu").unet
    unet.set_attn_processor(processor())
    inputs = (torch.randn(4, 4, 32, 32, generator=generator()), torch.tensor(500), torch.randn(4, 16, 32))

    @torch.no_grad()
    def run():
        return unet(*inputs).sample

    plain = run()
    with capture(unet, rows="all") as captured:
        assert torch.equal(run(), plain)
    frame = captured.frame()
    own = frame[frame["layer"].str.contains("attn1")]
    assert set(own["kind"]) == {"shared"}
    assert (own["tokens"] == own["key_tokens"]).all()
    assert (own["training_tokens"] == own["tokens"] / 4).all()  # two images at 32 x 32, trained at 16 x 16
    assert set(frame.loc[~frame["layer"].str.contains("attn1"), "kind"]) == {"cross"}
    assert set(own["sample"]) == ({0, 2} if processor is ViewsProcessor else {0, 1, 2, 3})
    for (layer, _, keys), factor in factors(unet, run).items():
        expected = math.sqrt(math.log(keys) / math.log(keys / 4)) if "attn1" in layer else 1.0
        assert factor == pytest.approx(expected)


class RegisterProcessor(AttnProcessor2_0):
    """Registers are concatenated in front of the image tokens among the keys."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **others):
        if encoder_hidden_states is not None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, **others)
        registers = torch.ones(len(hidden_states), 4, hidden_states.shape[-1])
        query = attn.to_q(hidden_states)
        both = torch.cat([registers, hidden_states], dim=1)
        split = [x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, attn.to_k(both), attn.to_v(both))]
        return attn.to_out[0](F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))


class ReducedProcessor(AttnProcessor2_0):
    """Image tokens attend to every fourth image token."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **others):
        if encoder_hidden_states is not None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, **others)
        few = hidden_states[:, ::4]
        split = [
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for x in (attn.to_q(hidden_states), attn.to_k(few), attn.to_v(few))
        ]
        return attn.to_out[0](F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))


def test_registers_are_joint_and_reduced_keys_unknown(tiny_folder):
    from entropy_probe.models import load

    unet = load(tiny_folder, device="cpu").unet
    inputs = (torch.randn(2, 4, 16, 16, generator=generator()), torch.tensor(500), torch.randn(2, 16, 32))
    for processor, kind in ((RegisterProcessor, "joint"), (ReducedProcessor, "unknown")):
        layers = [name.removesuffix(".processor") for name in unet.attn_processors if "attn1" in name]
        unet.set_attn_processor(AttnProcessor2_0())
        for layer in layers:
            unet.get_submodule(layer).set_processor(processor())
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with capture(unet) as captured:
                unet(*inputs)
            with scaled(unet, Constant(1.3)) as scaling:
                unet(*inputs)
        own = captured.frame().query("layer in @layers")
        assert set(own["kind"]) == {kind}
        if kind == "joint":
            assert (own["tokens"] == own["query_tokens"]).all()
            assert own["image_mass"].between(0, 1, inclusive="neither").all()
            assert set(scaling.frame()["layer"]) == set(layers)
        else:
            assert scaling.unscaled.keys() == set(layers)


def test_text_as_long_as_the_image_is_not_an_image():
    latents = Latents(8, 8)
    text = frozenset([64])
    assert role("x.attn1", 64, 128, latents, Surroundings(contexts=text, texts=text))[0] == "joint"
    assert role("x.attn1", 64, 128, latents, Surroundings(contexts=text, texts=frozenset([7])))[0] == "shared"
    assert role("x.attn2", 64, 64, latents, Surroundings(contexts=text, texts=text))[0] == "cross"


# Tokens that are not the image


class Sequence(nn.Module):
    """A transformer layer over tokens in front of the image, the image, and a text at the end."""

    def __init__(self, front, text, sound=0):
        super().__init__()
        torch.manual_seed(0)
        self.front, self.text, self.sound = front, text, sound
        self.embed = nn.Conv2d(4, 32, 2, 2)
        self.attn = Attention(32, heads=2, dim_head=16)
        self.sound_attn = Attention(32, heads=2, dim_head=16)
        for layer in (self.attn, self.sound_attn):
            layer.to_q.weight.data *= 4

    def forward(self, hidden_states, timestep=None):
        tokens = self.embed(hidden_states).flatten(2).mT
        if self.front:
            history = torch.randn(len(tokens), self.front, 32, generator=generator(1))
            tokens = torch.cat([history, tokens], dim=1)
        if self.text:
            tokens = torch.cat([tokens, torch.randn(len(tokens), self.text, 32, generator=generator(2))], dim=1)
        out = self.attn(tokens)
        if self.sound:
            out = out[:, :1] + self.sound_attn(torch.randn(len(tokens), self.sound, 32, generator=generator(3)))
        return out


@pytest.mark.parametrize("patch", [None, 2])
@pytest.mark.parametrize(("front", "text"), [(0, 7), (20, 0), (20, 7), (100, 7), (3, 0)])
def test_history_in_front_of_the_image_is_located(front, text, patch):
    model = Sequence(front, text)
    if patch:
        model.config = SimpleNamespace(patch_size=patch)
    latents = torch.randn(2, 4, 16, 16, generator=generator())
    maps = []
    with torch.no_grad(), capture(model, rows="all") as captured:
        model(latents)
    with torch.no_grad(), eager(model, (), maps):
        model(latents)
    (call,) = captured.calls
    rows = maps[0].view(2, 2, *maps[0].shape[-2:])[:, :, front : front + 64]
    assert call.kind == "joint"
    assert call.tokens == call.rows == 64
    assert (call.entropy.double() - entropy(rows).mean(-1)).abs().max() <= 1e-5
    assert (call.image_mass.double() - rows[..., front : front + 64].sum(-1).mean(-1)).abs().max() <= 1e-5


@pytest.mark.parametrize(("patch", "message"), [(None, "kind of attn is unknown"), (2, "could not locate the image")])
def test_history_as_long_as_the_image_is_not_taken_for_it(patch, message):
    model = Sequence(64, 7)
    model.config = SimpleNamespace(patch_size=patch or 1)
    with torch.no_grad(), pytest.warns(UserWarning, match=message), capture(model) as captured:
        model(torch.randn(2, 4, 16, 16, generator=generator()))
    assert captured.frame()["image_mass"].isna().all()


def test_sound_is_unknown_and_not_scaled():
    model = Sequence(0, 0, sound=50)
    model.config = SimpleNamespace(patch_size=2)
    latents = torch.randn(1, 4, 16, 16, generator=generator())
    with torch.no_grad():
        with pytest.warns(UserWarning, match="kind of sound_attn is unknown"), capture(model) as captured:
            model(latents)
        kinds = captured.frame().set_index("layer")["kind"]
        assert set(kinds["attn"]) == {"self"}
        assert set(kinds["sound_attn"]) == {"unknown"}
        before = scales(model, lambda: model(latents))
        missed = pytest.warns(UserWarning, match="sound_attn was not scaled: its number of tokens has no relation")
        with missed, scaled(model, "paper", training_tokens={"attn": 16}) as scaling:
            after = scales(model, lambda: model(latents))
    assert scaling.unscaled.keys() == {"sound_attn"}
    factor = {one[0]: other[3] / one[3] for one, other in zip(before, after, strict=True)}
    assert factor == {"attn": pytest.approx(math.sqrt(math.log(64) / math.log(16))), "sound_attn": 1.0}


def test_references_in_front_of_the_image_are_located():
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    own = torch.stack([torch.zeros(24), rows.flatten(), columns.flatten()], -1)
    reference = own[:10] + torch.tensor([1.0, 0.0, 0.0])
    for ids, before, others in (
        (own, 0, 0), (torch.cat([own, reference]), 0, 10), (torch.cat([reference, own]), 10, 0),
        (torch.cat([reference, own, reference]), 10, 10),
    ):  # fmt: skip
        assert find_latents(nn.Identity(), {"img_ids": ids}) == Latents(4, 6, others=others, before=before)


# Layouts


class Configured(nn.Identity):
    def __init__(self, **config):
        super().__init__()
        self.config = type("Config", (), config)


@pytest.mark.parametrize(
    ("config", "shape", "expected"),
    [
        ({"in_channels": 4}, (2, 4, 32, 48), Latents(32, 48)),
        ({"in_channels": 4}, (2, 32, 48, 4), Latents(32, 48)),
        ({"in_channels": 4}, (2, 4, 48, 4), Latents(48, 4)),  # channels first, if the width is their number
        ({}, (2, 9, 32, 48), Latents(32, 48)),
        ({"in_channels": 16}, (1, 16, 5, 32, 48), Latents(32, 48, frames=5)),
        ({"in_channels": 16}, (1, 5, 16, 32, 48), Latents(32, 48, frames=5)),
        ({"in_channels": 16}, (1, 5, 32, 48, 16), Latents(32, 48, frames=5)),
        ({"in_visual_dim": 16}, (1, 5, 32, 48, 33), Latents(32, 48, frames=5)),
    ],
)
def test_number_of_channels_shows_the_layout(config, shape, expected):
    assert find_latents(Configured(**config), {"hidden_states": torch.zeros(shape)}) == expected


@pytest.fixture
def kandinsky():
    torch.manual_seed(0)
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4, in_text_dim=16, in_text_dim2=12, time_dim=16, out_visual_dim=4, patch_size=(1, 2, 2),
        model_dim=32, ff_dim=32, num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 6, 6),
    ).eval()  # fmt: skip
    for parameter in transformer.parameters():  # its modulation is zero in a new model, which would hide the attention
        if parameter.abs().sum() == 0:
            parameter.data.normal_(0, 0.2)
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=(4,) * 4, norm_num_groups=2, latent_channels=4, **blocks)
    texts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipeline = Kandinsky5T2IPipeline(transformer=transformer, vae=vae.eval(), scheduler=scheduler, **texts)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.resolutions = [(256, 128)]
    return pipeline


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_with_channels_last_are_read(kandinsky, dtype):
    def text(*shape, seed):
        return torch.randn(*shape, generator=generator(seed)).to(dtype)

    lengths = {"prompt_cu_seqlens": torch.tensor([0, 7]), "negative_prompt_cu_seqlens": torch.tensor([0, 7])}

    def run():
        kandinsky(
            height=128, width=256, num_inference_steps=2, guidance_scale=3.5, output_type="latent",
            prompt_embeds_qwen=text(1, 7, 16, seed=1), prompt_embeds_clip=text(1, 12, seed=2),
            negative_prompt_embeds_qwen=text(1, 7, 16, seed=3), negative_prompt_embeds_clip=text(1, 12, seed=4),
            generator=generator(), **lengths,
        )  # fmt: skip

    with capture(kandinsky) as captured:
        run()
    frame = captured.frame()
    visual = frame[frame["kind"] == "self"]
    assert visual[["tokens", "training_tokens"]].drop_duplicates().values.tolist() == [[128, 4096]]
    assert frame.groupby(["step", "branch"]).size().nunique() == 1
    assert frame.groupby("step")["branch"].agg(list).map(lambda own: own[0] + own[-1]).tolist() == ["conduncond"] * 2
    expected = pytest.approx(math.sqrt(math.log(128) / math.log(4096)))
    scaled_by = factors(kandinsky, run)
    assert {layer.split(".")[0] for (layer, *_) in scaled_by} == {
        "text_transformer_blocks",
        "visual_transformer_blocks",
    }
    for (layer, *_), factor in scaled_by.items():
        assert factor == (expected if "visual" in layer and "self" in layer else 1.0)
