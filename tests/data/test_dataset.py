"""Samples follow the recipe, from every kind of source; faults are named and left out on all processes alike."""

import argparse
import json
import logging
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from synthetic_clips import noise, shown, write_levels, write_prepared, write_table
from torch.utils.data import DataLoader

from diffsynth_omniavatar.data import dataset as dataset_module
from diffsynth_omniavatar.data.dataset import OmniAvatarDataset, check_dataset, scan_clips
from diffsynth_omniavatar.data.sources import BadSampleError, ClipFacts, ClipSettings, ClipSource, Recipe, read_clips
from diffsynth_omniavatar.media.sound import Sound
from diffsynth_omniavatar.media.video import read_frames
from diffsynth_omniavatar.media.writer import VideoWriter
from diffsynth_omniavatar.model.config import Conventions
from diffsynth_omniavatar.training.loader import seed_cpu_generators

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

SETTINGS = ClipSettings(height=32, width=32)
RECIPE = Recipe(max_tokens=200)


@dataclass(frozen=True, kw_only=True)
class FakeClip(ClipSource):
    """Costs nothing to load; its latents are its reference's place."""

    name: str
    frames: int = 41
    height: int = 32
    width: int = 32
    broken: bool = False
    faults: tuple[str, ...] = ()

    def inspect(self, settings: ClipSettings, recipe: Recipe, deep: bool = False) -> ClipFacts:
        if self.faults:
            raise BadSampleError(self.name, self.faults)
        longest = recipe.longest(self.frames, self.height, self.width)
        return ClipFacts(
            height=self.height, width=self.width, frames=self.frames, longest=longest, live=frozenset(), group=()
        )

    def load(self, facts: ClipFacts, settings: ClipSettings, num_frames: int, reference: float) -> dict[str, Any]:
        if self.broken:
            raise ValueError("broken in the middle")
        return {"reference_latents": torch.tensor([int(reference * self.frames)])}


def fakes(count: int, **changes: Any) -> list[ClipSource]:
    return [FakeClip(name=f"clip{index}", **changes) for index in range(count)]


def make(clips: list[ClipSource], recipe: Recipe = RECIPE, **options: Any) -> OmniAvatarDataset:
    return OmniAvatarDataset(clips, settings=options.pop("settings", SETTINGS), recipe=recipe, **options)


def draw(dataset: OmniAvatarDataset, index: int = 0, seed: int = 0) -> Any:
    seed_cpu_generators(seed)
    return dataset[index]


def fields(sample: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(sample).items() if value is not None}


def assert_same(first: Any, second: Any) -> None:
    assert fields(first).keys() == fields(second).keys()
    for name, value in fields(first).items():
        other = getattr(second, name)
        if isinstance(value, torch.Tensor):
            assert value.dtype == other.dtype and torch.equal(value, other), name
        elif name == "waveforms":
            assert all(torch.equal(*pair) for pair in zip(value, other, strict=True))
        else:
            assert value == other, name


def near(count: int, total: int, probability: float) -> bool:
    """Within five standard deviations."""
    return abs(count - total * probability) < 5 * (total * probability * (1 - probability)) ** 0.5


# --------------------------------------------------------------------------------------------------------- the recipe


def test_lengths_prefixes_and_dropouts_are_drawn_as_the_recipe_says() -> None:
    recipe = Recipe(max_tokens=33, text_drop_prob=0.1, audio_drop_prob=0.3, prefix_drop_prob=0.5)
    dataset = make(fakes(1), recipe)
    seed_cpu_generators(7)
    samples = [dataset[0] for _ in range(4000)]
    lengths = Counter(sample.num_frames for sample in samples)
    assert sorted(lengths) == [17, 21, 25, 29, 33]  # 41 frames, of which max_tokens allows 33
    assert all(near(count, 4000, 1 / 5) for count in lengths.values())
    prefixes = Counter(sample.prefix_frames for sample in samples)
    assert sorted(prefixes) == [1, 5, 9, 13] and all(near(count, 4000, 1 / 4) for count in prefixes.values())
    references = Counter(int(sample.reference_latents) for sample in samples)
    assert sorted(references) == [*range(41)] and all(near(count, 4000, 1 / 41) for count in references.values())
    for name in ("text", "audio", "prefix"):
        dropped = sum(int(getattr(sample, f"drop_{name}").sum()) for sample in samples)
        assert near(dropped, 4000, getattr(recipe, f"{name}_drop_prob")), name
    both = sum(bool(sample.drop_audio & sample.drop_prefix) for sample in samples)
    assert near(both, 4000, 0.15)  # independent


def test_a_prefix_is_shorter_than_its_sample() -> None:
    dataset = make(fakes(1, frames=14), Recipe(min_frames=5, max_tokens=200))
    seed_cpu_generators(0)
    drawn = {(sample.num_frames, sample.prefix_frames) for sample in (dataset[0] for _ in range(300))}
    assert drawn == {(5, 1), (9, 1), (9, 5), (13, 1), (13, 5), (13, 9)}
    assert draw(make(fakes(1), replace(RECIPE, prefix_frames=()))).prefix_frames == 0


def test_limits_of_the_length() -> None:
    full = Recipe(dynamic_length=False, max_tokens=200)
    assert draw(make(fakes(1), full)).num_frames == 41
    assert draw(make(fakes(1, frames=40), full)).num_frames == 37
    assert draw(make(fakes(1), replace(full, num_frames=21))).num_frames == 21
    assert draw(make(fakes(1), replace(full, max_tokens=30))).num_frames == 29
    assert Recipe(prefix_frames=(1,)).shortest == 5 and Recipe().shortest == 17


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"text_drop_prob": 1.5}, "text_drop_prob is 1.5, wanted 0 to 1"),
        ({"prefix_frames": (1, 4)}, "prefix_frames has 4, wanted 4n"),
        ({"num_frames": 80}, "num_frames has 80"),
        ({"num_frames": 13}, "num_frames 13 is below the shortest sample, 17"),
        ({"min_frames": 1}, "wanted 5 or more"),
    ],
)
def test_impossible_recipes_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Recipe(**wrong)


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"in_dim is 16.*height is 32 and width None.*mouth_mask .*none\.png is missing"
    ):
        ClipSettings(in_dim=16, height=32, mouth_mask=tmp_path / "none.png")
    with pytest.raises(ValueError, match="a size of 40x32; wanted multiples of 16"):
        ClipSettings(height=40, width=32)


# -------------------------------------------------------------------------------------------------------- video files


@pytest.fixture(scope="module")
def levels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a clip of 40 frames and its table."""
    folder = tmp_path_factory.mktemp("levels")
    write_levels(folder / "a.mp4", 40)
    write_table(folder / "clips.csv", [{"video": "a.mp4", "prompt": "A face."}])
    return folder


def test_a_live_sample_is_the_clip_from_its_start(levels: Path) -> None:
    dataset = make(read_clips(levels / "clips.csv"), replace(RECIPE, min_frames=5))
    lengths, references = set(), Counter[int]()
    for seed in range(60):
        sample = draw(dataset, seed=seed)
        assert sample.target_video.dtype == torch.uint8
        assert sample.target_video.shape == (1, sample.num_frames, 32, 32, 3)
        assert shown(sample.target_video) == [*range(sample.num_frames)]
        lengths.add(sample.num_frames)
        references[shown(sample.reference_image)[0]] += 1
        assert sample.sources == ["a.mp4"] and sample.prompts == ["A face."]
        (waveform,) = sample.waveforms
        assert waveform.dtype == torch.float32 and len(waveform) == 40 * 640  # of the whole clip
    assert lengths == {*range(5, 38, 4)}
    assert min(references) < 5 and max(references) > 36 and max(references.values()) < 8  # also behind the end
    assert dataset.needed_networks().keys() == {"vae", "speech_encoder", "text_encoder"}
    assert dataset.describe(0) == "a.mp4" and not dataset.load_from_cache


def test_samples_are_functions_of_the_global_generators_alone(levels: Path) -> None:
    clips = read_clips(levels / "clips.csv")
    dataset = make(clips)
    first = draw(dataset, seed=3)
    draw(dataset, seed=4)
    assert_same(first, draw(dataset, seed=3))
    assert_same(first, draw(make(clips), seed=3))
    assert any(draw(dataset, seed=seed).num_frames != first.num_frames for seed in range(4, 9))


def test_a_given_reference_image_takes_the_place_of_random_frames(levels: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (250, 10, 10)).save(tmp_path / "face.png")
    row = {"video": str(levels / "a.mp4"), "prompt": "A face.", "reference": "face.png"}
    dataset = make(read_clips(write_table(tmp_path / "clips.csv", [row])))
    for seed in range(3):
        image = draw(dataset, seed=seed).reference_image
        assert image.dtype == torch.uint8 and image.shape == (1, 32, 32, 3)
        assert image[0, 5, 5].tolist() == [250, 10, 10]


def test_pictures_and_sound_of_30_fps_stay_together(tmp_path: Path) -> None:
    """It flashes and sounds in the same tenths of a second; so must the frames and samples of the same numbers."""
    bright = [index // 3 % 2 == 1 for index in range(90)]  # 3 of 30 frames a second: 0.1 s
    loud = np.repeat([index % 2 == 1 for index in range(30)], 1600)
    sound = Sound((0.5 * loud * np.random.default_rng(0).choice([-1, 1], 48000)).astype(np.float32)[None], 16000)
    with VideoWriter(tmp_path / "a.mp4", 32, 32, frame_rate=30, crf=0, sound=sound) as writer:
        level = torch.tensor(bright, dtype=torch.uint8) * 200
        writer.write(level.view(-1, 1, 1, 1).expand(-1, 32, 32, 3))
    dataset = make(
        read_clips(write_table(tmp_path / "clips.csv", [{"video": "a.mp4", "prompt": "Flash."}])),
        replace(RECIPE, dynamic_length=False),
    )
    sample = draw(dataset)
    assert sample.num_frames == 73  # 75 at 25 a second
    pictures = (sample.target_video[0].float().mean((1, 2, 3)) > 100).tolist()
    sounds = [(sample.waveforms[0][640 * frame : 640 * frame + 320].abs().mean() > 0.2).item() for frame in range(73)]
    agreeing = sum(a == b for a, b in zip(pictures, sounds, strict=True))
    assert agreeing >= 70, (pictures, sounds)  # frames that begin within a flash are bright; AAC smears the edges


def test_clips_go_to_the_nearest_trained_size(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "wide.mp4", 40, 72, sound=noise(1)) as writer:
        writer.write(torch.zeros(25, 40, 72, 3, dtype=torch.uint8))
    write_levels(tmp_path / "square.mp4", 25)
    rows = [{"video": name, "prompt": "x"} for name in ("wide.mp4", "square.mp4")]
    conventions = Conventions(image_sizes=((32, 64), (48, 48)))
    dataset = make(
        read_clips(write_table(tmp_path / "clips.csv", rows)), settings=ClipSettings(conventions=conventions)
    )
    assert draw(dataset, 0).target_video.shape[2:4] == (32, 64)
    assert draw(dataset, 1).target_video.shape[2:4] == (48, 48)


def test_v2v_samples_carry_their_mask_and_a_reference_sequence_that_never_overlaps(tmp_path: Path) -> None:
    write_levels(tmp_path / "a.mp4", 39)
    mask = Image.fromarray(np.kron([[255, 255], [255, 0]], np.ones((16, 16))).astype(np.uint8))
    mask.save(tmp_path / "mask.png")
    rows = [{"video": "a.mp4", "prompt": "x", "mask": "mask.png"}, {"video": "a.mp4", "prompt": "x"}]
    clips = read_clips(write_table(tmp_path / "clips.csv", rows))
    settings = replace(SETTINGS, in_dim=65)
    dataset = make(clips, replace(RECIPE, min_frames=5), settings=settings)
    lengths = set()
    for seed in range(40):
        sample = draw(dataset, seed=seed)
        target, sequence = shown(sample.target_video), shown(sample.reference_video)
        assert len(sequence) == len(target) == sample.num_frames
        assert sequence == [*range(39 - 17, 39 - 17 + len(sequence))] and max(target) < min(sequence)
        lengths.add(len(target))
    assert lengths == {5, 9, 13, 17}  # half of the clip
    assert draw(dataset, 0).mouth_mask == tmp_path / "mask.png" and draw(dataset, 1).mouth_mask is None
    assert draw(make(clips), 0).mouth_mask is None  # I2V
    assert len(make(clips, batch_size=2, settings=replace(SETTINGS, in_dim=49))) == 2  # of two masks, so no batch


# ------------------------------------------------------------------------------------------------------------- tables


def test_tables_in_every_form_name_the_same_clips(tmp_path: Path) -> None:
    rows = [{"video": f"{name}.mp4", "prompt": f"Speaks, {name}."} for name in "ab"]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    write_table(tmp_path / "t.csv", rows)
    wanted = read_clips(tmp_path / "t.csv")
    assert [clip.prompt for clip in wanted] == ["Speaks, a.", "Speaks, b."]
    assert wanted == read_clips(tmp_path / "t.json") == read_clips(tmp_path / "t.jsonl")
    assert read_clips(tmp_path / "t.csv", tmp_path / "videos")[0].video == tmp_path / "videos" / "a.mp4"
    assert read_clips(tmp_path / "t.csv", "")[0].video == tmp_path / "a.mp4"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.json", "{", "cannot be read"),
        ("t.json", "{}", "every row needs a `video`"),
        ("t.csv", "path,prompt\na.mp4,x\n", "every row needs a `video`"),
        ("t.csv", "video,prompt\n", "names no clip"),
        ("list.txt", "\n\n", "names no clip"),
    ],
)
def test_unusable_tables_are_refused_by_name(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name}.*{words}"):
        read_clips(tmp_path / name)
    with pytest.raises(ValueError, match=r"nothing\.csv does not exist"):
        read_clips(tmp_path / "nothing.csv")


# ----------------------------------------------------------------------------------------------- prepared directories

C, D, TOKENS = 12, 6, 8


def numbered(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def fill(folder: Path, frames: int = 21, audio: torch.dtype = torch.float32) -> None:
    """All tensors of a prepared directory, for 32x32 pixels."""
    count = (frames + 3) // 4
    for file, offset in (("vae_latents.pt", 0), ("vae_latents_mask_all.pt", 1)):
        latents = {
            "input_latents": numbered(16, count, 4, 4),
            "masked_latents": numbered(16, count, 4, 4) + (1 + offset),
        }
        torch.save({**latents, "metadata": {"height": 32}}, folder / file)
    rows = {"audio_emb": numbered(frames + 9, C, dtype=audio), "metadata": {"fps": 25, "feature_dim": C}}
    torch.save(rows, folder / "audio_emb_omniavatar.pt")
    torch.save(numbered(1, TOKENS, D), folder / "text_emb.pt")
    torch.save({"ref_sequence_latents": numbered(16, count, 4, 4) + 5}, folder / "ref_latents.pt")


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """The list of two prepared directories with all tensors."""
    for name in "ab":
        fill(write_prepared(tmp_path / name))
    torch.save(numbered(TOKENS, D), tmp_path / "neg_text_emb.pt")
    (tmp_path / "list.txt").write_text(f"a\n\n{tmp_path / 'b'}\n")
    return tmp_path / "list.txt"


V2V = replace(SETTINGS, in_dim=49, audio_dim=C, text_dim=D)


def test_prepared_tensors_are_read_and_cut(prepared: Path) -> None:
    dataset = make(read_clips(prepared), settings=replace(V2V, in_dim=65), batch_size=2)
    for seed in range(4):
        sample = draw(dataset, seed=seed)
        count = (sample.num_frames + 3) // 4
        latents = numbered(16, 6, 4, 4)[:, :count]
        assert torch.equal(sample.input_latents, torch.stack([latents] * 2))
        assert torch.equal(sample.reference_latents, torch.stack([latents[:, :1]] * 2))
        assert torch.equal(sample.masked_latents, torch.stack([latents + 1] * 2))
        assert torch.equal(sample.reference_sequence_latents, torch.stack([latents + 5] * 2))
        features = numbered(30, C, dtype=torch.float32)[: sample.num_frames]
        assert torch.equal(sample.audio_features, torch.stack([features] * 2))
        assert torch.equal(sample.context, numbered(1, TOKENS, D).expand(2, -1, -1))
        assert torch.equal(sample.empty_context, numbered(TOKENS, D)[None])
        live = ("target_video", "waveforms", "prompts", "reference_image", "reference_video", "mouth_mask_latents")
        assert all(getattr(sample, name) is None for name in live)
    assert {*dataset.needed_networks()} == {"speech_encoder"}  # for the features of silence
    no_audio_dropout = replace(RECIPE, audio_drop_prob=0.0)
    assert make(read_clips(prepared), no_audio_dropout, settings=V2V).needed_networks() == {}


def test_the_first_frame_decides_which_latents_are_taken(prepared: Path) -> None:
    masked = replace(V2V, conventions=Conventions(first_frame="masked"))
    sample = draw(make(read_clips(prepared), settings=masked))
    assert torch.equal(sample.masked_latents[0], numbered(16, 6, 4, 4)[:, : sample.masked_latents.shape[2]] + 2)
    for name in "ab":
        (prepared.parent / name / "vae_latents.pt").unlink()
    with pytest.raises(ValueError, match=r"vae_latents_mask_all\.pt is there, but first_frame is 'known'"):
        make(read_clips(prepared), settings=V2V)
    i2v = draw(make(read_clips(prepared), settings=replace(V2V, in_dim=33)))  # both have the same input latents
    assert i2v.input_latents is not None and i2v.masked_latents is None and i2v.mouth_mask is None


@pytest.mark.parametrize("form", ["batched", "plain", "dict"])
def test_text_embeddings_in_every_form(prepared: Path, form: str) -> None:
    text = numbered(1, TOKENS, D, dtype=torch.float32) * 3
    saved = {"batched": text, "plain": text[0], "dict": {"prompt_emb": text, "mask": torch.ones(3)}}[form]
    torch.save(saved, prepared.parent / "a" / "text_emb.pt")
    torch.save(saved, prepared.parent / "neg_text_emb.pt")
    sample = draw(make(read_clips(prepared), settings=V2V))
    assert torch.equal(sample.context, text) and torch.equal(sample.empty_context, text)


def test_a_table_of_directories_is_a_list_with_prompts(prepared: Path) -> None:
    for name in "ab":
        (prepared.parent / name / "text_emb.pt").unlink()
    rows = [{"video": "a", "prompt": "From the table."}, {"video": "b"}]
    dataset = make(read_clips(write_table(prepared.parent / "t.csv", rows)), settings=V2V)
    assert draw(dataset, 0).prompts == ["From the table."] and draw(dataset, 1).prompts == ["A person talks."]
    assert draw(dataset, 0).context is None and draw(dataset, 0).input_latents is not None
    (prepared.parent / "b" / "prompt.txt").unlink()
    assert [fault.reason for fault in scan_clips(dataset.clips, V2V, RECIPE).faults] == ["the prompt is empty"]


def test_what_is_not_prepared_is_live(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path / "a", frames=30)
    (tmp_path / "list.txt").write_text("a\n")
    sample = draw(make(read_clips(tmp_path / "list.txt"), settings=V2V))
    assert shown(sample.target_video) == [*range(sample.num_frames)] and sample.prompts == ["A person talks."]
    heard, rate = soundfile.read(folder / "audio.wav", dtype="float32")
    assert rate == 16000 and torch.equal(sample.waveforms[0], torch.from_numpy(heard))
    fill(folder)
    (folder / "audio_emb_omniavatar.pt").unlink()
    sample = draw(make(read_clips(tmp_path / "list.txt"), settings=V2V))
    assert sample.target_video is None and sample.input_latents is not None and sample.waveforms is not None


def test_a_prepared_reference_sequence_that_overlaps_shortens_the_sample(prepared: Path) -> None:
    settings = replace(V2V, in_dim=65)
    for start, longest in ((81, 21), (19, 17), (12, None), (0, None)):
        content = {"ref_sequence_latents": numbered(16, 6, 4, 4), "metadata": {"ref_start": start}}
        torch.save(content, prepared.parent / "a" / "ref_latents.pt")
        facts = scan_clips(read_clips(prepared), settings, RECIPE).facts[0]
        assert (None if facts is None else facts.longest) == longest


def test_audio_that_ends_early_shortens_the_sample(prepared: Path) -> None:
    torch.save({"audio_emb": numbered(19, C)}, prepared.parent / "a" / "audio_emb_omniavatar.pt")
    assert [facts.longest for facts in scan_clips(read_clips(prepared), V2V, RECIPE).facts] == [17, 21]


# ------------------------------------------------------------------------------------------------------------ batches


def test_items_are_clips_of_one_bucket_and_an_epoch_has_all(tmp_path: Path) -> None:
    clips: list[ClipSource] = [
        FakeClip(name=f"{height}-{index}", height=height, frames=frames)
        for height, count in ((32, 7), (64, 4), (96, 1))
        for index, frames in enumerate([90, 30, 61, 44, 30, 77, 25][:count])
    ]
    random.Random(1).shuffle(clips)
    dataset = make(clips, Recipe(max_tokens=500), batch_size=3)
    assert len(dataset) == 3 + 2 + 1 and dataset.items == make(clips, Recipe(max_tokens=500), batch_size=3).items
    assert sorted(index for item in dataset.items for index in item) == [*range(12)]
    fillers = Counter[str]()
    for seed in range(50):
        for index in range(len(dataset)):
            sample = draw(dataset, index, seed)
            heights = {name.split("-")[0] for name in sample.sources}
            assert len(sample.sources) == 3 and heights == {str(sample.height)}
            shortest = min(clip.frames for clip in clips if clip.name in sample.sources)
            assert sample.num_frames <= shortest and sample.reference_latents.shape == (3, 1)
            assert sample.drop_text.shape == sample.drop_audio.shape == sample.drop_prefix.shape == (3,)
            own = [clips[member].name for member in dataset.items[index]]
            assert sample.sources[: len(own)] == own
            fillers.update(name for name in sample.sources[len(own) :] if name.startswith("32"))
            if sample.height != 96:
                assert len(set(sample.sources)) == 3
    assert len(fillers) == 6 and max(fillers.values()) < 3 * min(fillers.values())  # all but the rest itself, evenly


def test_repeat_and_bounds() -> None:
    dataset = make(fakes(3), repeat=4)
    assert len(dataset) == 12 and draw(dataset, 7).sources == ["clip1"] and dataset.describe(7) == "clip1"
    with pytest.raises(IndexError):
        dataset[12]
    with pytest.raises(ValueError, match="batch_size 0 and repeat 1"):
        make(fakes(1), batch_size=0)


# ---------------------------------------------------------------------------------------------------------- bad clips


def test_clips_with_faults_are_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    clips = [*fakes(2), FakeClip(name="bad", faults=("no sound", "no prompt")), FakeClip(name="last")]
    with caplog.at_level(logging.WARNING):
        dataset = make(clips)
    assert [draw(dataset, index).sources for index in range(len(dataset))] == [["clip0"], ["clip1"], ["last"]]
    assert "left out: bad: no sound" in caplog.text and "1 of 4 clips are left out" in caplog.text
    with pytest.raises(BadSampleError, match="bad: no sound; no prompt"):
        make(clips, strict=True)
    with pytest.raises(ValueError, match="none of 1 clips can be used: bad: no sound"):
        make([clips[2]])


def test_a_clip_that_breaks_later_is_replaced_by_the_next(caplog: pytest.LogCaptureFixture) -> None:
    clips: list[ClipSource] = [FakeClip(name=f"clip{index}", broken=index in (1, 2, 4)) for index in range(5)]
    dataset = make(clips)
    with caplog.at_level(logging.WARNING):
        taken = [draw(dataset, index).sources[0] for index in range(5)]
    assert taken == ["clip0", "clip3", "clip3", "clip3", "clip0"]
    assert taken == [draw(make(clips), index).sources[0] for index in range(5)]  # as on every other process
    assert "clip1: broken in the middle; the next sample takes its place (number 1 so far)" in caplog.text
    assert dataset.skipped == 4
    with pytest.raises(BadSampleError, match="clip4: broken in the middle"):
        make(clips, strict=True)[4]
    with pytest.raises(BadSampleError, match="clip0: neither it nor any other clip can be read"):
        make(fakes(2, broken=True))[0]


def one(batch: list[Any]) -> Any:
    return batch[0]


def test_samples_and_errors_come_out_of_a_loaders_workers(levels: Path) -> None:
    live = make(read_clips(levels / "clips.csv"), replace(RECIPE, dynamic_length=False))
    (loaded,) = DataLoader(live, num_workers=1, collate_fn=one)
    assert torch.equal(loaded.target_video, live[0].target_video)
    broken = DataLoader(make(fakes(1, broken=True), strict=True), num_workers=1, collate_fn=one)
    with pytest.raises(BadSampleError, match="clip0: broken in the middle"):
        next(iter(broken))


def test_all_processes_get_the_same_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [FakeClip(name=f"clip{index}", faults=("bad",) * (index in (2, 5))) for index in range(7)]
    alone = scan_clips(clips, SETTINGS, RECIPE)
    assert alone.bad_clips == 2 and [fault.index for fault in alone.faults] == [2, 5]
    rank, shares, all_done = threading.local(), {}, threading.Barrier(3, timeout=60)

    def gather(share: Any) -> list[Any]:
        shares[rank.number] = share
        all_done.wait()
        return [shares[number] for number in range(3)]

    def scan(number: int) -> Any:
        rank.number = number
        return scan_clips(clips, SETTINGS, RECIPE)

    monkeypatch.setattr(dataset_module, "_process", lambda: (rank.number, 3))
    monkeypatch.setattr(dataset_module, "_gather", gather)
    with ThreadPoolExecutor(3) as processes:
        assert list(processes.map(scan, range(3))) == [alone] * 3
    assert sorted(len(share) for share in shares.values()) == [2, 2, 3]


def write_faulty_data(folder: Path) -> list[tuple[str, str]]:
    """A table of good and bad clips; gives the faults."""
    write_levels(folder / "good.mp4", 30)
    write_levels(folder / "short.mp4", 16)
    write_levels(folder / "silent.mp4", 30, sound=Sound(np.zeros((1, 19200), np.float32), 16000))
    write_levels(folder / "half.mp4", 30, sound=noise(0.3))
    with VideoWriter(folder / "mute.mp4", 32, 32) as writer:
        writer.write(torch.zeros(30, 32, 32, 3, dtype=torch.uint8))
    whole = (folder / "good.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    for name in ("nan", "shape", "size", "text", "empty"):
        fill(write_prepared(folder / name))
    features = numbered(30, C)
    features[7, 3] = float("nan")
    torch.save({"audio_emb": features}, folder / "nan" / "audio_emb_omniavatar.pt")
    torch.save({"input_latents": numbered(16, 6, 4)}, folder / "shape" / "vae_latents.pt")
    torch.save({"input_latents": numbered(16, 6, 5, 4)}, folder / "size" / "vae_latents.pt")
    (folder / "text" / "text_emb.pt").write_bytes(b"not a file of tensors")
    (folder / "empty" / "text_emb.pt").unlink()
    (folder / "empty" / "prompt.txt").write_text(" \n")
    rows = [
        {"video": "good.mp4", "prompt": "x"},
        {"video": "gone.mp4", "prompt": "x", "audio": "gone.wav"},
        {"video": "mute.mp4", "prompt": "x"},
        {"video": "short.mp4", "prompt": " "},
        {"video": "silent.mp4", "prompt": "x"},
        {"video": "half.mp4", "prompt": "x"},
        {"video": "cut.mp4", "prompt": "x", "reference": "gone.png"},
        *({"video": name} for name in ("nan", "shape", "size", "text", "empty")),
    ]
    write_table(folder / "t.csv", rows)
    return [
        ("gone.mp4", "video .*gone.mp4 is missing"),
        ("gone.mp4", "audio .*gone.wav is missing"),
        ("mute.mp4", "no sound track"),
        ("short.mp4", "the prompt is empty"),
        ("short.mp4", "too short: 16 frames.*wanted 17"),
        ("silent.mp4", "silent"),
        ("half.mp4", "the sound lasts 8 video frames, a sample up to 29"),
        ("cut.mp4", "reference .*gone.png is missing"),
        ("cut.mp4", "cannot be read"),
        ("nan", "the audio has NaN"),
        ("shape", r"vae_latents.pt: input_latents is \[16, 6, 4\], wanted \[16, T, h, w\]"),
        ("size", "latents of 40x32 pixels, wanted multiples of 16"),
        ("text", "text_emb.pt is no readable file of tensors"),
        ("empty", "the prompt is empty"),
    ]


def test_a_check_lists_all_faults_of_all_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = write_faulty_data(tmp_path)
    settings = ClipSettings(conventions=Conventions(image_sizes=((32, 32),)))
    faults = check_dataset(read_clips(tmp_path / "t.csv"), settings, RECIPE)
    assert [fault.clip for fault in faults] == [clip for clip, _ in wanted]
    for fault, (_, words) in zip(faults, wanted, strict=True):
        with pytest.raises(ValueError, match=words):
            raise ValueError(fault.reason)
    quick = {fault.clip for fault in scan_clips(read_clips(tmp_path / "t.csv"), settings, RECIPE).faults}
    assert quick == {clip for clip, _ in wanted} - {"silent.mp4", "half.mp4", "nan"}  # these need decoding and reading

    parser = argparse.ArgumentParser()
    dataset_module.add_arguments(parser)
    flags = ["--height", "32", "--width", "32"]
    assert dataset_module.run(parser.parse_args([str(tmp_path / "t.csv"), *flags])) == 1
    assert "12 clips, 11 of them with faults" in capsys.readouterr().out
    write_table(tmp_path / "good.csv", [{"video": "good.mp4", "prompt": "x"}])
    assert dataset_module.run(parser.parse_args([str(tmp_path / "good.csv"), *flags])) == 0
    assert "1 clips, 0 of them with faults" in capsys.readouterr().out


def test_faults_that_only_loading_shows_do_not_stop_training(tmp_path: Path) -> None:
    write_faulty_data(tmp_path)
    rows = [{"video": name, "prompt": "x"} for name in ("silent.mp4", "half.mp4", "good.mp4")]
    dataset = make(read_clips(write_table(tmp_path / "t.csv", rows)))
    assert [draw(dataset, index).sources for index in range(3)] == [["good.mp4"]] * 3
    assert dataset.skipped == 3


def test_frames_are_those_of_the_file(levels: Path) -> None:
    sample = draw(make(read_clips(levels / "clips.csv")), seed=1)
    wanted = read_frames(levels / "a.mp4", 0, sample.num_frames, (32, 32))
    assert torch.equal(sample.target_video[0], wanted)
