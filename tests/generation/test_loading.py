"""Models are found and loaded: by name, in upstream's folders, in parts, and with weights that wait in CPU memory."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from synthetic_clips import portrait, speech

from diffsynth_omniavatar import host
from diffsynth_omniavatar.generation import loading
from diffsynth_omniavatar.generation.pipeline import OmniAvatarPipeline
from diffsynth_omniavatar.generation.placement import is_movable, move
from diffsynth_omniavatar.model import files
from diffsynth_omniavatar.model.blocks import runner as block_runner
from diffsynth_omniavatar.model.blocks.pieces import compiled
from diffsynth_omniavatar.model.config import Conventions
from diffsynth_omniavatar.model.small_family import register_family
from diffsynth_omniavatar.nano.family import write_random_family

BLEND_TOLERANCE = (
    1e-4  # of [-1, 1]: W x + scale B A x in place of (W + scale B A) x, in float32 through the whole model
)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    conventions = Conventions(image_sizes=((64, 64),), max_tokens=36)
    return write_random_family(tmp_path_factory.mktemp("family"), conventions=conventions)


def test_upstream_folder_layout(tmp_path):
    wan = tmp_path / "Wan2.1-T2V-14B"
    wan.mkdir()
    for name in ("b.safetensors", "a.safetensors"):
        (wan / f"diffusion_pytorch_model-{name}").touch()
    found = files.model_files("14B", tmp_path, {"vae": "other.pth", "wav2vec2": None})
    assert [path.name[-13:] for path in found.sources["dit"]] == ["a.safetensors", "b.safetensors"]
    assert found.sources["omniavatar"] == (tmp_path / "OmniAvatar-14B",)
    assert found.sources["vae"] == (Path("other.pth"),)
    assert set(found.missing()) == {"text_encoder", "vae", "tokenizer", "omniavatar", "wav2vec2"}
    with pytest.raises(FileNotFoundError, match=r"vae: other\.pth"):
        loading.pipeline_arguments(found)
    shards = [wan / f"diffusion_pytorch_model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    for shard in (shards[0], shards[2]):
        shard.touch()
    assert files.model_files("14B", tmp_path).missing()["dit"] == shards[1]
    with pytest.raises(ValueError, match="no part 'unet'"):
        files.model_files(parts={"unet": "x"})


def test_hub_files_are_the_published_ones(tmp_path, monkeypatch):
    monkeypatch.delenv("DIFFSYNTH_DOWNLOAD_SOURCE", raising=False)
    configs = loading.pipeline_arguments(files.model_files("1.3B"))["model_configs"]
    assert [config.model_id for config in configs] == [
        "Wan-AI/Wan2.1-T2V-1.3B",
        "Wan-AI/Wan2.1-T2V-1.3B",
        "Wan-AI/Wan2.1-T2V-1.3B",
        "OmniAvatar/OmniAvatar-1.3B",
        "facebook/wav2vec2-base-960h",
    ]
    monkeypatch.chdir(tmp_path)
    assert all(not source.downloaded() for source in files.hub_files("1.3B").values())
    vae = tmp_path / "models" / "DiffSynth-Studio" / "Wan-Series-Converted-Safetensors" / "Wan2.1_VAE.safetensors"
    vae.parent.mkdir(parents=True)
    vae.touch()
    assert [str(path) for path in files.hub_files("1.3B")["vae"].downloaded()] == [str(vae.relative_to(tmp_path))]


def test_upstream_folder_loads_like_the_family(tmp_path, family):
    names, wan = files.SMALL_FAMILY, tmp_path / "Wan2.1-T2V-14B"
    (wan / "google").mkdir(parents=True)
    (wan / "google" / "umt5-xxl").symlink_to(family / names["tokenizer"])
    (tmp_path / "OmniAvatar-14B").symlink_to(family / names["omniavatar"])
    (tmp_path / "wav2vec2-base-960h").symlink_to(family / names["wav2vec2"])
    weights = sorted(load_file(family / names["dit"]).items())
    for shard in (1, 2):
        save_file(dict(weights[shard - 1 :: 2]), wan / f"diffusion_pytorch_model-0000{shard}-of-00002.safetensors")
    torch.save(load_file(family / names["text_encoder"]), wan / "models_t5_umt5-xxl-enc-bf16.pth")
    torch.save(load_file(family / names["vae"]), wan / "Wan2.1_VAE.pth")
    register_family()
    expected = loading.load_pipeline(folder=family, device="cpu")
    pipe = loading.load_pipeline("14B", tmp_path, device="cpu", first_frame="masked")
    for part in ("dit", "text_encoder", "vae"):
        weights, wanted = getattr(pipe, part).state_dict(), getattr(expected, part).state_dict()
        assert set(weights) == set(wanted) and all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert torch.equal(pipe.encode_prompt("a"), expected.encode_prompt("a"))
    assert (pipe.conventions.first_frame, expected.conventions.first_frame) == ("masked", "known")
    assert pipe.conventions.max_tokens == 36
    move(pipe, "meta")
    assert {str(weight.device) for weight in [*pipe.parameters(), *pipe.buffers()]} == {"meta"}
    assert torch.device(pipe.device).type == "meta" and is_movable(pipe)


def test_an_adapter_goes_onto_the_shipped_small_model():
    found = files.model_files("nano", parts={"omniavatar": files.NANO_V2V})
    paths = [config.path for config in loading.pipeline_arguments(found)["model_configs"]]
    assert str(files.NANO_I2V) in paths and str(files.NANO_V2V) in paths
    alone = loading.pipeline_arguments(files.model_files("nano"))["model_configs"]
    assert str(files.NANO_I2V) not in [config.path for config in alone]  # the checkpoint is read once


def clip(pipe):
    inputs = {"prompt": "a", "input_image": portrait(64), "input_audio": speech(0.3)}
    settings = {"num_frames": 9, "num_inference_steps": 2, "seed": 1, "audio_cfg_scale": 3.0}
    return pipe(**inputs, **settings, output_type="floatpoint", progress_bar_cmd=iter)


@pytest.fixture(scope="module")
def plain_clip(family):
    """With all weights in memory, and no compiler."""
    pipe = loading.load_pipeline(folder=family, device="cpu")
    assert pipe.dit.runner is None
    return clip(pipe)


@pytest.mark.parametrize("limit", [0.0, 1000.0])
def test_offloaded_weights_give_the_same_clip(family, plain_clip, monkeypatch, limit):
    for backend in (torch.cuda, torch.cpu):  # what the hosts ask of a GPU, answered for the CPU
        monkeypatch.setattr(backend, "mem_get_info", lambda *_: (0, 100 * 2**30), raising=False)
        monkeypatch.setattr(backend, "empty_cache", lambda: None, raising=False)
    arguments = loading.pipeline_arguments(files.model_files(folder=family))
    arguments |= {"device": "cpu", "torch_dtype": torch.float32}
    offloaded = host.load_within(limit, OmniAvatarPipeline.from_pretrained, arguments)
    assert offloaded.vram_management_enabled and not is_movable(offloaded)
    assert (clip(offloaded) - plain_clip).abs().max() < BLEND_TOLERANCE


def test_compiled_blocks_give_the_same_clip(family, plain_clip, monkeypatch):
    pieces = compiled("aot_eager")
    monkeypatch.setattr(block_runner, "compiled", lambda **_: pieces)
    pipe = loading.load_pipeline(folder=family, device="cpu", compile=True)
    assert pipe.dit.runner is not None
    assert 0 < (clip(pipe) - plain_clip).abs().max() < BLEND_TOLERANCE


def test_wrong_devices_and_formats_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert loading.choose_device(None) == "cpu" and loading.choose_dtype(None, "cpu") == torch.float32
    assert loading.choose_dtype(None, "cuda") == torch.bfloat16
    with pytest.raises(ValueError, match="PyTorch sees no GPU"):
        loading.choose_device("cuda:1")
    with pytest.raises(ValueError, match="dtype 'fp8': wanted one of bfloat16"):
        loading.choose_dtype("fp8", "cpu")


def test_a_failed_download_names_the_files(tmp_path, monkeypatch):
    def without_network(**arguments):
        raise ConnectionError("connection refused")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(OmniAvatarPipeline, "from_pretrained", without_network)
    torch.save({}, tmp_path / "vae.pth")
    with pytest.raises(OSError, match=r"facebook/wav2vec2-base-960h.*--models_folder.*connection refused") as caught:
        loading.load_pipeline("14B", vae=tmp_path / "vae.pth", device="cpu")
    assert "Wan2.1_VAE" not in str(caught.value)
