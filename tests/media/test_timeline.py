"""The clocks, and the plan of a long video: equal to upstream's, and each frame beside its row."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diffsynth_omniavatar.media import timeline
from diffsynth_omniavatar.media.timeline import Chunk, ChunkPlan, plan_chunks

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

LENGTHS_AND_OVERLAPS = [(5, 1), (17, 5), (17, 13), (21, 9), (57, 13), (105, 1), (105, 13)]


@pytest.fixture(scope="module")
def recorded(goldens: Path) -> dict[str, Any]:
    return json.loads((goldens / "chunks.json").read_text())


def upstream_chunk(chunk: Chunk) -> dict[str, Any]:
    """`chunk` in the words of chunks.json."""
    front = [-1] * chunk.zero_rows + list(chunk.repeated_rows)
    carried = chunk.carried
    return {
        "audio_start": chunk.rows.start,
        "audio_end": chunk.rows.stop,
        "audio_prefix": [front[0], front[-1]],
        "audio_len": chunk.zero_rows + len(chunk.feature_rows),
        "prefix_lat_frame": chunk.prefix_latents,
        "carried": None if carried is None else [carried.start, carried.stop - 1, chunk.index - 1],
        "mask": "".join(map(str, chunk.mask)),
        "kept": [chunk.kept.start, chunk.kept.stop],
    }


def upstream_plan(plan: ChunkPlan) -> dict[str, Any]:
    return {
        "L": plan.length,
        "T": plan.latent_length,
        "padded_audio_len": plan.padded_rows,
        "padded_samples": plan.padded_samples,
        "chunks": len(plan.chunks),
        "frames_before_trim": plan.generated_frames,
        "frames": plan.frames,
        "plan": [upstream_chunk(chunk) for chunk in plan.chunks],
    }


@pytest.mark.parametrize("group", ["cases", "edge_cases"])
def test_plans_equal_upstream(recorded: dict[str, Any], group: str) -> None:
    settings = {"size", "overlap_frame", "random_prefix_frames", "audio_samples"}
    assert recorded[group]
    for case in recorded[group]:
        plan = plan_chunks(
            case["audio_samples"],
            length=timeline.chunk_length(*case["size"], recorded["max_tokens"]),
            overlap=case["overlap_frame"] if case["random_prefix_frames"] else 1,
        )
        assert upstream_plan(plan) == {key: value for key, value in case.items() if key not in settings}


def test_chunk_lengths_equal_upstream(recorded: dict[str, Any]) -> None:
    for case in recorded["lengths"]:
        length = timeline.chunk_length(*case["size"], case["max_tokens"])
        assert (length, timeline.latent_frames(length)) == (case["L"], case["T"])


def test_audio_rows_have_upstreams_extra_row_where_doubles_round_up(recorded: dict[str, Any]) -> None:
    one_more = [n for n in range(3001) if timeline.audio_rows(n * timeline.SAMPLES_PER_FRAME) == n + 1]
    assert one_more == recorded["audio_len_quirk"]["frames"]
    assert all(timeline.audio_rows(n * timeline.SAMPLES_PER_FRAME) in (n, n + 1) for n in range(3001))
    assert [timeline.audio_rows(samples) for samples in (1, 640, 641)] == [1, 1, 2]


def lengths_of_sound(length: int, overlap: int) -> list[int]:
    """Row counts about every border of the first few chunks."""
    borders = [1, *(length + k * (length - overlap) for k in range(4))]
    return sorted({max(1, border + nudge) for border in borders for nudge in (-2, -1, 0, 1, 2)})


@pytest.mark.parametrize("leading_rows", [0, 1])
@pytest.mark.parametrize(("length", "overlap"), LENGTHS_AND_OVERLAPS)
def test_each_frame_hears_its_row(length: int, overlap: int, leading_rows: int) -> None:
    for rows in lengths_of_sound(length, overlap):
        plan = plan_chunks(rows * 640, length=length, overlap=overlap, leading_rows=leading_rows)
        heard: dict[int, int | None] = {}
        for chunk in plan.chunks:
            beside = [None] * chunk.zero_rows + list(chunk.feature_rows)
            assert len(beside) == len(chunk.frames) == length
            for frame, row in zip(chunk.frames, beside, strict=True):
                assert row == (frame - leading_rows if frame >= leading_rows else None)
            for place in chunk.kept:
                assert chunk.frames[place] not in heard, "a frame is kept once"
                heard[chunk.frames[place]] = beside[place]
        assert list(heard) == list(range(plan.frames))
        assert [row for row in heard.values() if row is not None] == list(range(plan.audio_rows))
        assert plan.frames == timeline.audio_rows(rows * 640) + leading_rows


@pytest.mark.parametrize("leading_rows", [0, 1])
@pytest.mark.parametrize(("length", "overlap"), LENGTHS_AND_OVERLAPS)
def test_a_chunk_goes_on_from_the_frames_before(length: int, overlap: int, leading_rows: int) -> None:
    plan = plan_chunks(640 * 4 * length, length=length, overlap=overlap, leading_rows=leading_rows)
    taken = [row for chunk in plan.chunks for row in chunk.rows]
    assert taken == list(range(plan.padded_rows))
    for before, chunk in zip(plan.chunks, plan.chunks[1:], strict=False):
        assert chunk.carried is not None
        assert [before.frames[i] for i in chunk.carried] == list(chunk.frames[: chunk.prefix_frames])
        assert chunk.kept.start == chunk.prefix_frames == overlap
        assert chunk.kept, "every chunk is needed"
    assert plan.generated_frames >= plan.frames


def test_without_leading_row_a_short_sound_fills_the_chunk() -> None:
    plan = plan_chunks(5 * 640, length=17, overlap=5, leading_rows=0)
    assert (plan.frames, plan.padded_rows, len(plan.chunks)) == (5, 17, 1)
    assert plan.chunks[0].rows == range(17)
    assert plan.chunks[0].zero_rows == 0


def test_latent_and_video_frames_are_inverse() -> None:
    for latents in range(1, 50):
        assert timeline.latent_frames(timeline.video_frames(latents)) == latents
    assert [timeline.clip_length(n) for n in (1, 2, 5, 6, 80, 81, 82)] == [1, 5, 5, 9, 81, 81, 85]


@pytest.mark.parametrize("call", [lambda: timeline.latent_frames(80), lambda: timeline.latent_frames(-3)])
def test_other_numbers_of_frames_are_refused(call: Any) -> None:
    with pytest.raises(ValueError, match=r"4n\+1"):
        call()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, "0 audio samples"),
        ({"length": 56}, "length of 56"),
        ({"length": -3}, "length of -3"),
        ({"overlap": 12}, "overlap of 12"),
        ({"overlap": 0}, "overlap of 0"),
        ({"overlap": 57}, "shorter"),
        ({"leading_rows": 2}, "leading_rows is 2"),
    ],
)
def test_impossible_plans_are_refused(changes: dict[str, int], message: str) -> None:
    settings = {"samples": 64000, "length": 57, "overlap": 13, "leading_rows": 1} | changes
    with pytest.raises(ValueError, match=message):
        plan_chunks(settings.pop("samples"), **settings)


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens"):
        timeline.chunk_length(720, 1280, 3000)
    with pytest.raises(ValueError, match="at least 1"):
        timeline.clip_length(0)


def test_imports_neither_torch_nor_diffsynth() -> None:
    code = "import sys, diffsynth_omniavatar.media.timeline; print({'torch', 'numpy', 'diffsynth'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
