"""`info`, `run`, `sample` and `baseline` work on pipelines that start from images, labels or noise, and on videos."""

import json
import sys
from pathlib import Path

import pytest
import torch
from families.pipelines import by_family
from test_pipeline_call import MASK, PHOTO, controlnet, ddpm, dit, image_to_image, inpainting

import entropy_probe as ep
from entropy_probe.cli import main as cli
from entropy_probe.models import from_png, sample_clips, to_png

pytestmark = pytest.mark.filterwarnings("ignore:.*also runs in the sampling steps")

CUSTOM = """
import torch
from diffusers import StableDiffusionPipeline
from entropy_probe.models import load

class Plain(StableDiffusionPipeline):
    '''A pipeline with its own call, which returns a tuple of a list of arrays.'''

    @torch.no_grad()
    def __call__(self, prompt, height=64, width=64, num_inference_steps=3, generator=None, tint=0.0):
        output = super().__call__(
            prompt, height=height, width=width, num_inference_steps=num_inference_steps, generator=generator,
            output_type="np", return_dict=False,
        )
        return ([image + tint for image in output[0]],)

def build():
    parts = load({folder!r}, device="cpu").components
    return Plain(**parts, requires_safety_checker=False)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_pipeline, tiny_folder):
    """The folder of each kind of pipeline, and the flags that it needs."""
    import copy

    folder = tmp_path_factory.mktemp("kinds")
    PHOTO.save(folder / "photo.png")
    MASK.save(folder / "mask.png")
    (folder / "inpaint.yaml").write_text("mask_image: mask.png\nstrength: 1.0\n")
    (folder / "label.yaml").write_text("class_labels: 3\n")
    for build in (image_to_image, inpainting, controlnet):
        torch.manual_seed(0)
        pipeline, _ = build(copy.deepcopy(tiny_pipeline).components | {"requires_safety_checker": False})
        pipeline.save_pretrained(folder / build.__name__)
    for build in (ddpm, dit):
        build().save_pretrained(folder / build.__name__)
    for name in ("Wan", "LTX-Video"):
        torch.manual_seed(0)
        by_family(name).save_pretrained(folder / name)
    (folder / "my_plain_pipeline.py").write_text(CUSTOM.replace("{folder!r}", repr(str(tiny_folder))))
    return folder


FLAGS = {
    "image_to_image": ["--image", "photo.png", "--negative-prompt", "blue"],
    "inpainting": ["--image", "photo.png", "--pipeline-kwargs", "inpaint.yaml"],
    "controlnet": ["--image", "photo.png"],
    "ddpm": [],
    "dit": ["--pipeline-kwargs", "label.yaml"],
    "Wan": ["--num-frames", "9"],
    "LTX-Video": ["--num-frames", "9"],
    "my_plain_pipeline:build": [],
}
ONE_SIZE = {"ddpm", "dit"}
TRAINED = {"Wan": "64", "LTX-Video": "64"}


@pytest.fixture
def command(models, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.chdir(models)
        monkeypatch.setattr(sys, "argv", ["entropy-probe", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        assert stopped.value.code == 0, err
        return out, err

    yield run
    sys.modules.pop("my_plain_pipeline", None)


def prompts(kind):
    return [] if kind in ONE_SIZE else ["--prompt", "noto red apple", "--prompt", "flat pizza"]


@pytest.mark.parametrize("kind", FLAGS)
def test_info_lists_the_layers(command, kind):
    out, _ = command("info", "--model", kind, "--device", "cpu", "--json")
    shown = json.loads(out)
    visual = [layer for layer in shown["layers"] if layer["kind"] in ("self", "joint")]
    assert visual
    assert all(layer["training_tokens"] for layer in visual)
    assert shown["training_frames"] == {"Wan": 81, "LTX-Video": 161}.get(kind)


def test_sample_counts_the_frames_of_the_clip_like_run(command, models, tmp_path):
    flags = ["--steps", "2", "--guidance-scale", "3", "--sizes", "64", "--num-frames", "9", "--law", "paper"]
    command("sample", "flat pizza", "--model", "LTX-Video", "--device", "cpu", *flags, "--out", tmp_path)
    pipeline, settings = ep.load(models / "LTX-Video", device="cpu"), {"pipeline_kwargs": {"num_frames": 9}}
    (path,) = tmp_path.iterdir()
    with ep.scaled(pipeline, "paper", training_frames=9):
        (expected,) = sample_clips(pipeline, ["flat pizza"], (64, 64), [0], steps=2, guidance_scale=3.0, **settings)
    assert path.read_bytes() == to_png(expected)


@pytest.mark.parametrize("kind", FLAGS)
def test_sample_saves_images_or_videos(command, kind, tmp_path):
    texts = [] if kind in ONE_SIZE else ["noto red apple", "flat pizza"]
    sizes = [] if kind in ONE_SIZE else ["--sizes", "64,64x96"]
    flags = ["--model", kind, "--device", "cpu", "--steps", "2", "--out", tmp_path, *sizes, *FLAGS[kind]]
    out, _ = command("sample", *texts, *flags, "--json")
    files = [image["file"] for image in json.loads(out)["images"]]
    assert len(files) == (1 if kind in ONE_SIZE else 4)
    frames = 9 if "--num-frames" in FLAGS[kind] else 1
    assert {len(from_png(Path(file).read_bytes())) for file in files} == {frames}


@pytest.mark.parametrize("kind", [kind for kind in FLAGS if kind not in TRAINED])
def test_run_writes_a_report(command, kind, tmp_path):
    sizes = [] if kind in ONE_SIZE else ["--sizes", "32x64,64"]
    flags = ["--model", kind, "--device", "cpu", "--steps", "2", "--rounds", "1", "--metrics", "none"]
    _, err = command("run", *flags, *sizes, *prompts(kind), *FLAGS[kind], "--out", tmp_path / "run")
    assert (tmp_path / "run" / "report.html").is_file()
    assert "bundled prompts" not in err
    if kind in ONE_SIZE:
        assert "samples one size: no law is fitted, derived or validated" in err
    else:
        assert (tmp_path / "run" / "outcome.json").is_file()


@pytest.mark.parametrize("kind", FLAGS)
def test_baseline_is_saved_and_unchanged(command, kind, tmp_path):
    flags = ["--device", "cpu", *FLAGS[kind]]
    file = tmp_path / "baseline.json"
    seeds = "0,1,2,3,4,5,6,7" if kind in ONE_SIZE else "0,1,2,3"
    sizes = [] if kind in ONE_SIZE else ["--sizes", "64"]
    command("baseline", "save", kind, *flags, *sizes, *prompts(kind), "--seeds", seeds, "--steps", "2", "--out", file)
    command("baseline", "check", kind, file, *flags)


@pytest.mark.parametrize("kind", TRAINED)
def test_video_is_swept_and_validated(command, kind, tmp_path, models):
    """The training size of these pipelines is large, so a run in Python is given a small one."""
    from entropy_probe.models import load, training_size

    pipeline = load(models / kind, device="cpu")
    pipeline.transformer.register_to_config(sample_size=8)
    size = training_size(pipeline)
    grid = {"prompts": ["a", "b"], "sizes": [size, (size[0], 2 * size[1])], "steps": 1, "progress": False}
    swept = ep.sweep(pipeline, **grid, pipeline_kwargs={"num_frames": 9})
    frame = swept.frame()
    visual = frame[frame["kind"] == "self"]
    trained = visual[visual["width"] == size[1]]
    assert (trained["tokens"] == trained["training_tokens"]).all()
    assert set(visual["tokens"] / visual["training_tokens"]) == {1, 2}
    derivation = ep.derive(swept, rounds=1, progress=False)
    outcome = ep.validate(swept, [derivation], scorer=None, progress=False)
    assert derivation.name in set(outcome.layers()["law"])
    longer = ep.sweep(pipeline, **grid, pipeline_kwargs={"num_frames": 17}, training_frames=9)
    ratio = longer.frame().query("kind == 'self'").eval("tokens / training_tokens")
    assert set(ratio) == ({5 / 3, 10 / 3} if kind == "Wan" else {1.5, 3})
