"""Every argument of `load_pipeline` arrives at the host's loader, or in the pipeline's conventions."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from diffsynth_omniavatar import host
from diffsynth_omniavatar.generation import loading
from diffsynth_omniavatar.generation.pipeline import OmniAvatarPipeline
from diffsynth_omniavatar.model.config import Conventions

PARTS = ("dit", "text_encoder", "vae", "tokenizer", "omniavatar", "wav2vec2")


@pytest.fixture
def load(monkeypatch):
    """Calls `load_pipeline` where nothing is loaded; gives what would be, and the pipeline."""

    def run(**arguments):
        seen = SimpleNamespace(limit=None, sources=set())
        hub_config = host.hub_config

        def from_pretrained(**given):
            seen.given = given
            return SimpleNamespace(conventions=Conventions(), text_encoder="a network", vae="a network")

        def load_within(limit, loader, given):
            seen.limit = limit
            return loader(**given)

        monkeypatch.setattr(OmniAvatarPipeline, "from_pretrained", staticmethod(from_pretrained))
        monkeypatch.setattr(host, "load_within", load_within)
        monkeypatch.setattr(host, "hub_config", lambda *args: seen.sources.add(args[2]) or hub_config(*args))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(loading, "check_parts", lambda sources: None)
        monkeypatch.setattr(loading, "check_loras", lambda loras, *_: list(loras))
        monkeypatch.delenv("DIFFSYNTH_DOWNLOAD_SOURCE", raising=False)
        seen.pipe = loading.load_pipeline(**arguments)
        configs = [*seen.given["model_configs"], seen.given["tokenizer_config"]]
        seen.paths = {str(config.path) for config in configs if config.path is not None}
        seen.repositories = {config.model_id for config in configs}
        return seen

    return run


@pytest.fixture
def files(tmp_path):
    """A file for each part; that of the checkpoint is a LoRA."""
    folder = tmp_path / "parts"
    folder.mkdir()
    paths = {part: folder / f"{part}.safetensors" for part in PARTS}
    for path in paths.values():
        save_file({"blocks.0.self_attn.q.lora_A.weight": torch.zeros(1)}, path)
    return {part: str(path) for part, path in paths.items()}


def given(name):
    return lambda seen: seen.given[name]


ARRIVALS = {
    "model": ("1.3B", lambda seen: "OmniAvatar/OmniAvatar-1.3B" in seen.repositories, True),
    "device": ("cuda:1", given("device"), "cuda:1"),
    "dtype": ("float16", given("torch_dtype"), torch.float16),
    "lora": ("adapters", given("omniavatar_lora"), "adapters"),
    "loras": ([("a.pt", 0.5)], given("omniavatar_loras"), [("a.pt", 0.5)]),
    "in_dim": (49, given("omniavatar_channels"), 49),
    "vram_limit": (8.5, lambda seen: seen.limit, 8.5),
    "compile": (True, given("omniavatar_compile"), True),
    "quantize": ("fp8", given("omniavatar_quantize"), "fp8"),
    "keep_bf16": ("first", given("omniavatar_keep_bf16"), "first"),
    "quantize_attention": (True, given("omniavatar_quantize_attention"), True),
    "stream_weights": (True, given("omniavatar_stream_weights"), True),
    "use_usp": (True, given("use_usp"), True),
    "cfg_parallel": ("off", given("omniavatar_cfg_parallel"), "off"),
    "shard_weights": (True, given("omniavatar_shard_weights"), True),
    "download_source": ("modelscope", lambda seen: seen.sources, {"modelscope"}),
    "checkpoint_preset": ("lipforcing_teacher", lambda seen: seen.pipe.conventions.first_frame, "masked"),
    "leading_audio_rows": (0, lambda seen: seen.pipe.conventions.leading_audio_rows, 0),
    "first_frame": ("masked", lambda seen: seen.pipe.conventions.first_frame, "masked"),
}


def test_every_argument_of_load_pipeline_is_looked_at():
    assert set(ARRIVALS) | {*PARTS, "folder"} == set(inspect.signature(loading.load_pipeline).parameters)


@pytest.mark.parametrize("name", ARRIVALS)
def test_an_argument_of_load_pipeline_arrives(load, name):
    value, look, wanted = ARRIVALS[name]
    others = {"use_usp": True} if name == "shard_weights" else {}
    assert look(load(**{**others, name: value})) == wanted
    assert look(load(**others)) != wanted


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_lies_elsewhere_is_loaded_from_there(load, files, part):
    assert load(**{part: files[part]}).paths == {files[part]} and load().paths == set()


def test_a_folder_has_all_parts(load, files, tmp_path):
    wan = tmp_path / "Wan2.1-T2V-14B"
    (wan / "google" / "umt5-xxl").mkdir(parents=True)
    for name in ("diffusion_pytorch_model.safetensors", "models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth"):
        (wan / name).touch()
    for name in ("OmniAvatar-14B", "wav2vec2-base-960h"):
        (tmp_path / name).mkdir()
    (tmp_path / "OmniAvatar-14B" / "model.safetensors").symlink_to(files["omniavatar"])
    paths = load(folder=tmp_path).paths
    assert len(paths) == len(PARTS) and all(path.startswith(str(tmp_path)) for path in paths)
