"""A cache gives the samples that the clips give; it is complete or refused."""

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_clips import draw
from nasty import drawn_people
from nasty import encode as encode_video_file
from PIL import Image
from processes import run_in_processes
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from synthetic_clips import shown, write_levels, write_prepared, write_table, write_texture

from diffsynth_omniavatar import host
from diffsynth_omniavatar.data import cache_writer, encode
from diffsynth_omniavatar.data import precompute as precompute_module
from diffsynth_omniavatar.data.cache import Cache
from diffsynth_omniavatar.data.cache_index import StaleCacheError
from diffsynth_omniavatar.data.cache_writer import plain_settings
from diffsynth_omniavatar.data.clip_faces import cut_frames, face_crops
from diffsynth_omniavatar.data.clips import ClipSettings
from diffsynth_omniavatar.data.dataset import OmniAvatarDataset
from diffsynth_omniavatar.data.encode import CacheOptions, encoder_pipeline, reference_places
from diffsynth_omniavatar.data.precompute import precompute
from diffsynth_omniavatar.data.recipe import Recipe
from diffsynth_omniavatar.data.scan import check_dataset, scan_clips
from diffsynth_omniavatar.data.tables import read_clips
from diffsynth_omniavatar.data.video_clip import VideoClip
from diffsynth_omniavatar.generation.pipeline import OmniAvatarPipeline
from diffsynth_omniavatar.media.faces.template import LATENTSYNC, Template
from diffsynth_omniavatar.media.sound import Sound
from diffsynth_omniavatar.model.config import CheckpointConfig, Conventions
from diffsynth_omniavatar.model.files import SMALL_FAMILY as FILES
from diffsynth_omniavatar.model.small_family import NANO, TINY, family_configs, register_family
from diffsynth_omniavatar.nano.family import write_random_family
from diffsynth_omniavatar.training.module import OmniAvatarTrainingModule
from diffsynth_omniavatar.training.settings import StepSettings

SETTINGS = ClipSettings(height=32, width=32, in_dim=49)
RECIPE = Recipe(prefix_frames=(1, 5), max_tokens=17)
FLOAT32 = CacheOptions(audio_dtype=torch.float32)


@pytest.fixture(scope="module")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_family(tmp_path_factory.mktemp("family"), in_dim=65)


def encoders(folder: Path, settings: ClipSettings = SETTINGS, dtype: torch.dtype = torch.float32) -> OmniAvatarPipeline:
    register_family()
    files = {name: str(folder / FILES[name]) for name in ("text_encoder", "vae", "tokenizer", "wav2vec2")}
    return encoder_pipeline(
        settings,
        model_configs=[host.ModelConfig(path=files[name]) for name in ("text_encoder", "vae")],
        tokenizer_config=host.ModelConfig(path=files["tokenizer"]),
        wav2vec2=Path(files["wav2vec2"]),
        device="cpu",
        dtype=dtype,
    )


@pytest.fixture(scope="module")
def pipe(family_folder: Path) -> OmniAvatarPipeline:
    return encoders(family_folder)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips; two have the same prompt."""
    folder = tmp_path_factory.mktemp("clips")
    for index, frames in enumerate((12, 19, 25)):
        write_texture(folder / f"{index}.mp4", frames, index)
    rows = [{"video": f"{index}.mp4", "prompt": f"Speaker {index % 2}."} for index in range(3)]
    return write_table(folder / "clips.csv", rows)


def write(pipe: OmniAvatarPipeline, table: Path, cache: Path, **changes: Any) -> Any:
    arguments = {"settings": SETTINGS, "recipe": RECIPE, "options": FLOAT32, "show_progress": False, **changes}
    return precompute(pipe, read_clips(table), cache, **arguments)


def content(folder: Path) -> dict[str, bytes]:
    """All files of a cache."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def cache(pipe: OmniAvatarPipeline, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    report = write(pipe, table, folder)
    assert (report.encoded, report.kept, report.faults) == (3, 0, ())
    return folder


# --------------------------------------------------------------------------------------------- a cache is its clips


def prepared_inputs(module: OmniAvatarTrainingModule, sample: Any) -> dict[str, torch.Tensor]:
    """What the units of training make of a sample, noise drawn by a fixed seed."""
    torch.manual_seed(0)
    shared, positive, _ = module.prepare(sample)
    return {
        name: value
        for name, value in {**shared, **positive}.items()
        if isinstance(value, torch.Tensor) and name != "latents"
    }


@pytest.mark.parametrize(("in_dim", "first_frame"), [(33, "known"), (49, "known"), (49, "masked"), (65, "known")])
def test_training_gets_from_a_cache_what_it_gets_from_the_clips(
    family_folder: Path, table: Path, tmp_path: Path, in_dim: int, first_frame: Any
) -> None:
    """Bit for bit, at any length: the first latents do not depend on later frames."""
    conventions = Conventions(first_frame=first_frame)
    settings = replace(SETTINGS, in_dim=in_dim, conventions=conventions)
    recipe = Recipe(
        prefix_frames=(1, 5),
        min_frames=9 if in_dim != 65 else 5,
        max_tokens=17,
        text_drop_prob=0.5,
        audio_drop_prob=0.5,
        prefix_drop_prob=0.0,  # its noise is drawn after the speech encoder, which in some versions draws too
    )
    options = replace(FLOAT32, references=99)  # all frames, so that the same one is drawn
    clips = read_clips(table)
    precompute(
        encoders(family_folder, settings), clips, tmp_path, settings=settings, recipe=recipe, options=options,
        show_progress=False,
    )  # fmt: skip
    live = OmniAvatarDataset(clips, settings=settings, recipe=recipe)
    cached = OmniAvatarDataset(read_clips(tmp_path), settings=settings, recipe=recipe)
    assert live.needed_networks().keys() == {"vae", "text_encoder", "speech_encoder"} and not cached.needed_networks()

    arguments = family_configs(family_folder)
    pipe = OmniAvatarPipeline.from_pretrained(**arguments, torch_dtype=torch.float32, device="cpu")
    pipe.conventions = conventions
    pipe.dit.config = replace(pipe.dit.config, in_dim=in_dim)
    module = OmniAvatarTrainingModule(pipe, CheckpointConfig(in_dim=in_dim), StepSettings())
    lengths = set()
    for index, seed in [(0, 0), (1, 1), (2, 2), (2, 3), (2, 4)]:
        from_clip, from_cache = draw(live, index, seed), draw(cached, index, seed)
        names = ("num_frames", "prefix_frames", "height", "width", "sources", "drop_text", "drop_audio", "drop_prefix")
        for name in names:
            assert getattr(from_clip, name) == getattr(from_cache, name), name
        assert from_cache.target_video is None and from_cache.waveforms is None and from_cache.prompts is None
        wanted, got = prepared_inputs(module, from_clip), prepared_inputs(module, from_cache)
        for name in ("input_latents", "omni_y", "omni_audio", "context", "omni_prefix_latents"):
            assert torch.equal(wanted[name], got[name]), (name, index, seed)
        lengths.add(from_clip.num_frames)
    assert len(lengths) > 1


def test_batches_from_a_cache_equal_their_members(pipe: OmniAvatarPipeline, table: Path, cache: Path) -> None:
    clips = read_clips(cache)
    recipe = replace(RECIPE, dynamic_length=False)
    dataset = OmniAvatarDataset(clips, settings=SETTINGS, recipe=recipe, batch_size=3)
    assert len(dataset) == 1
    batch = draw(dataset)
    assert batch.num_frames == 9 and batch.mouth_mask_latents.shape == (1, 1, 3, 4, 4)
    for place, name in enumerate(batch.sources):
        member = load_file(clips[int(name[0])].path)
        assert torch.equal(batch.input_latents[place], member["input_latents"][:, :3])
        assert torch.equal(batch.masked_latents[place], member["masked_latents"][:, :3])
        assert torch.equal(batch.audio_features[place], member["audio_features"][:9])
        assert any(torch.equal(batch.reference_latents[place], one) for one in member["reference_latents"])
    assert torch.equal(batch.silent_features, pipe.speech_encoder.silence(9))
    assert torch.equal(batch.context[0], pipe.encode_prompt(f"Speaker {int(batch.sources[0][0]) % 2}.")[0])
    assert torch.equal(batch.empty_context, pipe.encode_prompt(""))


def test_references_are_spread_over_the_whole_clip(pipe: OmniAvatarPipeline, tmp_path: Path) -> None:
    assert reference_places(80, 8) == [5, 15, 25, 35, 45, 55, 65, 75]
    assert reference_places(3, 8) == [0, 1, 2] and reference_places(9, 1) == [4]
    write_levels(tmp_path / "a.mp4", 40)
    (clip,) = read_clips(write_table(tmp_path / "t.csv", [{"video": "a.mp4", "prompt": "x"}]))
    facts = scan_clips([clip], replace(SETTINGS, in_dim=65), RECIPE).facts[0]
    raw = encode.read_raw_clip(clip, facts, replace(SETTINGS, in_dim=65), 4)
    assert shown(raw.target) == [*range(17)] and shown(raw.references) == [5, 15, 25, 35]
    assert shown(raw.reference_sequence) == [*range(23, 40)]


def test_entries_have_the_number_formats_asked_for(family_folder: Path, table: Path, tmp_path: Path) -> None:
    bfloat16 = encoders(family_folder, dtype=torch.bfloat16)
    write(bfloat16, table, tmp_path, options=CacheOptions(references=2))
    tensors = load_file(read_clips(tmp_path)[0].path)
    latents = {name for name, tensor in tensors.items() if tensor.dtype == torch.bfloat16}
    assert latents == {"input_latents", "masked_latents", "reference_latents", "audio_features"}
    assert tensors["reference_latents"].shape == (2, 16, 1, 4, 4)
    assert next(iter(load_file(next((tmp_path / "text").iterdir())).values())).dtype == torch.bfloat16
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["settings"]["dtype"] == index["settings"]["audio_dtype"] == "bfloat16"
    assert index["settings"]["audio_dim"] == TINY.dit.audio_dim and index["settings"]["text_dim"] == TINY.dit.text_dim


def test_prepared_directories_are_encoded_from_their_videos(pipe: OmniAvatarPipeline, tmp_path: Path) -> None:
    write_prepared(tmp_path / "a")
    (tmp_path / "list.txt").write_text("a\n")
    report = write(pipe, tmp_path / "list.txt", tmp_path / "cache")
    assert report.encoded == 1
    dataset = OmniAvatarDataset(read_clips(tmp_path / "cache"), settings=SETTINGS, recipe=RECIPE)
    assert draw(dataset).sources == ["a"] and dataset.clips[0].entry["prompt"] == "A person talks."


# ------------------------------------------------------------------------------------------------ keeping and refusing


def test_what_is_there_is_kept(pipe: OmniAvatarPipeline, table: Path, tmp_path: Path) -> None:
    rows = [{"video": str(table.parent / f"{index}.mp4"), "prompt": f"Speaker {index % 2}."} for index in range(3)]
    write(pipe, write_table(tmp_path / "t.csv", rows[:2]), tmp_path / "cache")
    before = content(tmp_path / "cache")
    report = write(pipe, write_table(tmp_path / "t.csv", rows), tmp_path / "cache")
    assert (report.encoded, report.kept) == (1, 2)
    after = content(tmp_path / "cache")
    assert all(after[name] == data for name, data in before.items() if name != "index.json")
    assert (
        len([name for name in after if name.startswith("text")]) == 4
    )  # two prompts, the empty one, guidance's negative one
    rows[0]["prompt"] = "Another."
    assert write(pipe, write_table(tmp_path / "t.csv", rows), tmp_path / "cache").kept == 3
    assert read_clips(tmp_path / "cache")[0].entry["prompt"] == "Another."


def test_a_run_that_was_killed_goes_on(
    pipe: OmniAvatarPipeline, table: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []

    def encode_and_die(*arguments: Any) -> Any:
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(1)
        return encode_clip(*arguments)

    encode_clip = encode.encode_clip
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cache_writer, "encode_clip", encode_and_die)
        write(pipe, table, tmp_path)
    for left in (".half.safetensors.x1y2z3.safetensors", ".tmpAbCdEf", "../.index.json.x1y2z3.json"):
        (tmp_path / "clips" / left).write_bytes(b"half of a file")  # of a run that could not clear up after itself
    scratch = tmp_path / "text" / ".other.safetensors.x1y2z3_4"
    scratch.mkdir()
    (scratch / ".tmpAbCdEf").write_bytes(b"half of a file")
    assert len([*(tmp_path / "clips").glob("[!.]*")]) == 2
    with pytest.raises(StaleCacheError, match="no complete cache: run `omniavatar precompute`"):
        read_clips(tmp_path)
    report = write(pipe, table, tmp_path)
    assert (report.encoded, report.kept) == (1, 2)
    assert content(tmp_path) == content(cache)


OTHER_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "size": ({"settings": replace(SETTINGS, height=48)}, r"size is \[32, 32\], this run has \[48, 32\]"),
    "length": ({"recipe": replace(RECIPE, max_tokens=21)}, "max_tokens is 17, this run has 21"),
    "references": ({"options": replace(FLOAT32, references=3)}, "references is 8, this run has 3"),
    "audio": ({"options": CacheOptions()}, "audio_dtype is 'float32', this run has 'bfloat16'"),
}


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_a_cache_of_other_settings_is_refused(pipe: OmniAvatarPipeline, table: Path, cache: Path, name: str) -> None:
    changes, words = OTHER_SETTINGS[name]
    before = content(cache)
    with pytest.raises(StaleCacheError, match=words):
        write(pipe, table, cache, **changes)
    assert content(cache) == before


def test_a_cache_of_other_networks_is_refused(family_folder: Path, table: Path, cache: Path, tmp_path: Path) -> None:
    other = encoders(family_folder)
    with torch.no_grad():
        next(other.vae.parameters()).mul_(1.1)
    with pytest.raises(StaleCacheError, match=r"vae is '.*', this run has '"):
        write(other, table, cache)
    half = encoders(family_folder, dtype=torch.bfloat16)
    for name in ("vae", "text_encoder", "speech_encoder"):
        same = encode.network_key(getattr(half, name))
        assert same == encode.network_key(getattr(encoders(family_folder), name))


def test_training_refuses_a_cache_that_does_not_fit(cache: Path, tmp_path: Path) -> None:
    mask = tmp_path / "mask.png"
    Image.new("L", (8, 8)).save(mask)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"in_dim": 65}, "it is for 49 channels, the model takes 65"),
        ({"conventions": Conventions(first_frame="masked")}, "first_frame is 'known', this run has 'masked'"),
        ({"mouth_mask": mask}, "mouth_mask is 'built-in'"),
        ({"height": 48}, "size is"),
        ({"audio_dim": 10752}, f"audio_dim is {TINY.dit.audio_dim}, this run has 10752"),
        ({"text_dim": 4096}, "text_dim is 64"),
    ]
    for changes, words in wrong:
        with pytest.raises(StaleCacheError, match=words):
            OmniAvatarDataset(read_clips(cache), settings=replace(SETTINGS, **changes), recipe=RECIPE)
    for changes in ({"in_dim": 33}, {"height": None, "width": None}, {"audio_dim": TINY.dit.audio_dim}):
        OmniAvatarDataset(read_clips(cache), settings=replace(SETTINGS, **changes), recipe=RECIPE)


def test_a_cache_of_changed_clips_is_refused(pipe: OmniAvatarPipeline, tmp_path: Path) -> None:
    for name in "ab":
        write_texture(tmp_path / f"{name}.mp4", 12)
    table = write_table(tmp_path / "t.csv", [{"video": f"{name}.mp4", "prompt": "x"} for name in "ab"])
    write(pipe, table, tmp_path / "cache")

    def open_it() -> OmniAvatarDataset:
        return OmniAvatarDataset(read_clips(tmp_path / "cache"), settings=SETTINGS, recipe=RECIPE)

    os.utime(tmp_path / "a.mp4", (1, 1))  # copied: another time, the same content
    (tmp_path / "b.mp4").rename(tmp_path / "moved.mp4")  # a cache serves without its clips
    open_it()
    (tmp_path / "moved.mp4").rename(tmp_path / "b.mp4")
    write_texture(tmp_path / "a.mp4", 12, seed=5)
    with pytest.raises(StaleCacheError, match=r"a\.mp4 has changed since it was encoded"):
        open_it()
    faults = check_dataset(read_clips(tmp_path / "cache"), SETTINGS, RECIPE)
    assert [fault.clip for fault in faults] == ["a.mp4"]
    report = write(pipe, table, tmp_path / "cache")
    assert (report.encoded, report.kept) == (1, 1)
    open_it()


def damage(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_a_check_of_a_cache_reads_it(pipe: OmniAvatarPipeline, table: Path, tmp_path: Path) -> None:
    write(pipe, table, tmp_path)
    clips = read_clips(tmp_path)
    assert check_dataset(clips, SETTINGS, RECIPE) == []
    damage(clips[1].path, lambda tensors: tensors["audio_features"][2].fill_(float("nan")))
    clips[2].path.write_bytes(clips[2].path.read_bytes()[:100])
    clips[0].path.unlink()
    faults = check_dataset(clips, SETTINGS, RECIPE)
    assert [fault.clip for fault in faults] == ["0.mp4", "1.mp4", "2.mp4"]
    assert "is missing" in faults[0].reason and "NaN or infinite values in audio_features" in faults[1].reason
    assert "is no safetensors file (is it cut?)" in faults[2].reason


def test_damaged_and_foreign_indices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StaleCacheError, match=r"is no cache, as it has no index\.json; give .*prepare"):
        read_clips(tmp_path)
    for text, words in (("{", "not valid JSON"), ("[]", "has format None"), ('{"format": 99}', "has format 99")):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(StaleCacheError, match=words):
            Cache(tmp_path)


# ------------------------------------------------------------------------------------------- bad clips and processes


def write_some_bad(folder: Path) -> Path:
    """Five clips, of which one is too short and one has a silent sound, which only decoding shows."""
    for index, frames in enumerate((12, 5, 13)):
        write_texture(folder / f"{index}.mp4", frames, index)
    write_levels(folder / "silent.mp4", 12, sound=silence(12))
    write_texture(folder / "last.mp4", 12, 9)
    names = ["0.mp4", "1.mp4", "silent.mp4", "2.mp4", "last.mp4"]
    return write_table(folder / "t.csv", [{"video": name, "prompt": f"Says {name}."} for name in names])


def silence(frames: int) -> Any:
    return Sound(np.zeros((1, frames * 640), np.float32), 16000)


def test_bad_clips_are_named_and_the_others_encoded(pipe: OmniAvatarPipeline, tmp_path: Path) -> None:
    report = write(pipe, write_some_bad(tmp_path), tmp_path / "cache")
    assert report.encoded == 3
    (short, why_short), (silent, why_silent) = report.faults
    assert (short, silent) == ("1.mp4", "silent.mp4") and "too short" in why_short and "silent" in why_silent
    assert [clip.name for clip in read_clips(tmp_path / "cache")] == ["0.mp4", "2.mp4", "last.mp4"]
    index = json.loads((tmp_path / "cache" / "index.json").read_text())
    assert [fault["name"] for fault in index["faults"]] == ["1.mp4", "silent.mp4"]


def test_the_command_writes_a_cache(
    family_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    table = write_some_bad(tmp_path)
    parser = argparse.ArgumentParser()
    precompute_module.add_arguments(parser)
    parser.set_defaults(debug=False)  # a flag of every command
    flags = ["--models_folder", str(family_folder), "--dtype", "float32", "--audio_dtype", "float32", "--device", "cpu"]
    flags += ["--height", "32", "--width", "32", "--max_tokens", "17", "--prefix_frames", "1,5"]
    args = parser.parse_args([str(table), str(tmp_path / "cache"), *flags, "--omniavatar_mode", "v2v"])
    assert precompute_module.run(args) == 1
    told = [record.getMessage().partition(": ")[0] for record in caplog.records if record.levelname == "WARNING"]
    assert sorted(told) == ["1.mp4", "silent.mp4"]
    assert "3 clips encoded, 0 kept, 2 faults" in capsys.readouterr().out
    write(encoders(family_folder), table, tmp_path / "same")
    assert content(tmp_path / "cache") == content(tmp_path / "same")
    good = write_table(tmp_path / "good.csv", [{"video": "0.mp4", "prompt": "Says 0.mp4."}])
    args = parser.parse_args([str(good), str(tmp_path / "cache"), *flags, "--omniavatar_mode", "v2v"])
    assert precompute_module.run(args) == 0
    assert "0 clips encoded, 1 kept, 0 faults" in capsys.readouterr().out


def test_cheap_mistakes_are_told_before_anything_is_loaded(family_folder: Path, cache: Path, tmp_path: Path) -> None:
    write_texture(tmp_path / "short.mp4", 4)
    table = write_table(tmp_path / "t.csv", [{"video": "short.mp4", "prompt": "x"}])
    (tmp_path / "file").touch()
    (tmp_path / "mask.png").write_bytes(b"no picture")
    parser = argparse.ArgumentParser()
    parser.set_defaults(debug=False)
    precompute_module.add_arguments(parser)
    flags = ["--models_folder", str(family_folder), "--height", "32", "--width", "32"]
    new = str(tmp_path / "new")
    for data, folder, more, words in (
        (table, new, ["--vae", str(tmp_path / "none.pth")], r"none\.pth"),
        (table, new, [], "none of 1 clip.*: short.mp4: too short"),
        (table, new, ["--device", "cuda:99"], "--device cuda:99: this machine has"),
        (table, new, ["--device", "none"], "--device none"),
        (table, new, ["--references", "0"], "references is 0"),
        (table, new, ["--prefix_frames", "1,x"], "--prefix_frames 1,x: wanted whole numbers"),
        (table, new, ["--height", "40"], "40x32, wanted multiples of 16"),
        (table, new, ["--mouth_mask", str(tmp_path / "mask.png")], r"mask\.png: cannot be read"),
        (table, str(tmp_path / "file"), [], "file is no folder"),
        (table, str(cache), [], "in_dim is 49, this run has 33"),
        (cache, new, [], "0.mp4 comes from a cache"),
    ):
        arguments = [str(data), folder, "--device", "cpu", *flags, *more]
        with pytest.MonkeyPatch.context() as patch, pytest.raises((ValueError, OSError), match=words):
            patch.setattr(precompute_module, "encoder_pipeline", lambda *_, **__: pytest.fail("it loads"))
            precompute_module.run(parser.parse_args(arguments))
        assert not Path(new).exists()


@pytest.mark.parametrize("model", ["nano", "nano-v2v"])
def test_faces_are_cut_out_to_where_the_small_model_has_them(tmp_path: Path, model: str) -> None:
    write_texture(tmp_path / "a.mp4", 4)
    table = write_table(tmp_path / "t.csv", [{"video": "a.mp4", "prompt": "x"}])
    parser = argparse.ArgumentParser()
    precompute_module.add_arguments(parser)
    flags = ["--model", model, "--omniavatar_mode", "v2v", "--align", "--device", "cpu"]
    wanted = NANO.conventions.template if model == "nano-v2v" else LATENTSYNC
    seen = []

    def refuse(folder: Path, settings: dict[str, Any]) -> None:
        seen.append(Template(**settings["align"]))
        raise StaleCacheError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StaleCacheError):
        patch.setattr(precompute_module, "refuse_other_cache", refuse)
        precompute_module.run(parser.parse_args([str(table), str(tmp_path / "cache"), *flags]))
    assert seen == [wanted]


def write_together(family_folder: Path, table: Path, cache: Path) -> None:
    """Write a cache in each of several processes, and beside it what this one saw."""
    del os.environ["ACCELERATE_USE_CPU"]  # torchrun does not say that there is no GPU
    state = precompute_module.processes("cpu" if torch.cuda.is_available() else None)
    report = write(encoders(family_folder), table, cache)
    left_out = [fault.clip for fault in scan_clips(read_clips(table), SETTINGS, RECIPE).faults]
    seen = {"left out": left_out, "faults": report.faults, "encoded": report.encoded, "processes": state.num_processes}
    Path(f"{cache}.{state.process_index}.json").write_text(json.dumps(seen))
    state.destroy_process_group()


@pytest.mark.slow
@pytest.mark.forks
def test_two_processes_write_what_one_writes(family_folder: Path, tmp_path: Path) -> None:
    table = write_some_bad(tmp_path)
    run_in_processes(write_together, family_folder, table, tmp_path / "two", processes=2)
    write(encoders(family_folder), table, tmp_path / "one")
    assert content(tmp_path / "two") == content(tmp_path / "one")
    first, second = (json.loads((tmp_path / f"two.{process}.json").read_text()) for process in range(2))
    assert first == second and first["processes"] == 2 and first["encoded"] == 3
    assert first["left out"] == ["1.mp4"] and [name for name, _ in first["faults"]] == ["1.mp4", "silent.mp4"]


def test_silence_is_there_for_every_length(cache: Path) -> None:
    with safe_open(cache / "silence.safetensors", framework="pt") as stored:
        assert sorted(map(int, stored.keys())) == [5, 9, 13, 17]


def test_faces_are_cut_out_of_frames_and_references(tmp_path: Path) -> None:
    people = drawn_people(18, 288)
    encode_video_file(tmp_path / "one.mp4", people.first, people.speech)
    Image.fromarray(people.first[9]).save(tmp_path / "r.png")
    clip = VideoClip(name="one", video=tmp_path / "one.mp4", prompt="x", reference=tmp_path / "r.png")
    settings = ClipSettings(in_dim=49, height=256, width=256, faces="aligned")
    facts = scan_clips([clip], settings, replace(RECIPE, max_tokens=5000)).facts[0]
    raw = encode.read_raw_clip(clip, facts, settings, 4)
    crops = face_crops(clip.video, (256, 256), LATENTSYNC, aligned=True)
    assert torch.equal(raw.target, torch.stack(list(cut_frames(clip.video, crops, (256, 256))))[: facts.longest])
    assert (raw.references[0].float() - raw.target[9].float()).abs().mean() < 4
    any_face = replace(settings, faces="any")
    plain, aligned = (plain_settings(one, RECIPE, CacheOptions(), torch.float32) for one in (any_face, settings))
    assert set(aligned) - set(plain) == {"align"} and json.loads(json.dumps(aligned)) == aligned
    for made, wanted in ((plain, aligned), (aligned, plain)):
        cache_writer.write_index(tmp_path, {"complete": False, "settings": made, "texts": {}, "clips": []})
        cache_writer.refuse_other_cache(tmp_path, made)
        with pytest.raises(StaleCacheError, match="align is "):
            cache_writer.refuse_other_cache(tmp_path, wanted)
