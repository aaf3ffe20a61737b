"""Where a source is cut, what its clips show, and which figures break which rule."""

import dataclasses

import pytest
import torch
from prepare_looks import face, look, track

from diffsynth_omniavatar.data.face_rules import face_figures
from diffsynth_omniavatar.data.figure_rules import faults
from diffsynth_omniavatar.data.prepare.clip_figures import clip_figures
from diffsynth_omniavatar.data.prepare.clip_rules import clip_rules
from diffsynth_omniavatar.data.prepare.crops import crop_of, head_box
from diffsynth_omniavatar.data.prepare.look import Look, read_look, write_look
from diffsynth_omniavatar.data.prepare.settings import PrepareSettings
from diffsynth_omniavatar.data.prepare.spans import Span, plan_spans
from diffsynth_omniavatar.media.faces.face import Track

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

SHORTEST, LONGEST = 50, 500


def ranges(spans: list[Span]) -> list[tuple[int, int]]:
    return [(span.start, span.stop) for span in spans]


def test_a_clip_has_one_scene_and_one_person_and_some_frames_around_the_speech() -> None:
    spoken = [range(20, 90), range(110, 250)]
    seen = look(300, [track(range(0, 100), spoken=spoken), track(range(100, 300), spoken=spoken)], spoken, cuts=[100])
    spans = plan_spans(seen, SHORTEST, LONGEST)
    assert ranges(spans) == [(15, 95), (105, 255)]
    assert [span.track for span in spans] == [0, 1] and not any(span.reasons for span in spans)


def test_speech_that_goes_over_a_cut_is_cut_beside_it() -> None:
    seen = look(200, [track(range(100)), track(range(100, 200))], [range(10, 190)], cuts=[100])
    assert ranges(plan_spans(seen, SHORTEST, LONGEST)) == [(5, 99), (101, 195)]


def test_long_speech_is_cut_at_pauses_and_else_where_it_is_quiet() -> None:
    spoken = [range(0, 300), range(310, 700), range(712, 990)]
    seen = look(1000, [track(range(1000), spoken=spoken)], spoken)
    assert ranges(plan_spans(seen, SHORTEST, LONGEST)) == [(0, 305), (305, 706), (706, 995)]
    whole = look(1000, [track(range(1000))], [range(0, 1000)])
    whole.power[430:440] = 1e-5
    (first, second, *rest) = ranges(plan_spans(whole, SHORTEST, LONGEST))
    assert 430 <= first[1] <= 440 and second[0] == first[1] and rest[-1][1] == 1000
    assert all(stop - start <= LONGEST for start, stop in [first, second, *rest])


def test_the_rest_of_long_speech_is_not_too_short() -> None:
    seen = look(LONGEST + 10, [track(range(LONGEST + 10))], [range(LONGEST + 10)])
    seen.power[LONGEST - 10 :] = 1e-5  # quietest where the rest would be 20 frames
    assert min(stop - start for start, stop in ranges(plan_spans(seen, SHORTEST, LONGEST))) >= SHORTEST


def test_a_clip_does_not_begin_in_the_speech_of_another() -> None:
    turns = [range(10, 100), range(102, 200)]
    people = [track(range(300), 30, spoken=turns[:1]), track(range(300), 70, spoken=turns[1:])]
    assert ranges(plan_spans(look(300, people, turns), SHORTEST, LONGEST)) == [(5, 102), (100, 205)]


def test_the_speaker_is_whose_lips_move() -> None:
    turns = [range(10, 100), range(130, 250)]
    people = [track(range(300), 30, spoken=turns[:1]), track(range(300), 70, spoken=turns[1:])]
    spans = plan_spans(look(300, people, turns), SHORTEST, LONGEST)
    assert [span.track for span in spans] == [0, 1] and ranges(spans) == [(5, 105), (125, 255)]
    assert all(span.lead is not None and span.lead > 10 for span in spans)
    both = [track(range(300), 30, spoken=turns), track(range(300), 70, spoken=turns, motion=0.18)]
    lead = plan_spans(look(300, both, turns), SHORTEST, LONGEST)[0].lead
    assert lead is not None and faults({"speaker_lead": lead}, clip_rules("v2v"))


def test_small_faces_behind_a_person_are_no_speakers() -> None:
    spoken = [range(10, 100)]
    person, behind = track(range(120), 30, size=50), track(range(120), 70, size=15, spoken=spoken)
    (span,) = plan_spans(look(120, [behind, person], spoken), SHORTEST, LONGEST)
    assert span.track == 1 and span.lead is None


def test_each_scene_without_a_clip_has_its_reason() -> None:
    seen = look(300, [track(range(100, 200))], [range(10, 60)], cuts=[100, 200])
    assert [list(span.reasons) for span in plan_spans(seen, SHORTEST, LONGEST)] == [
        ["no_face"],
        ["no_speech"],
        ["no_face"],
    ]


@pytest.mark.parametrize("height, width", [(1920, 1080), (1080, 1920), (2000, 2100)])
@pytest.mark.parametrize("x, y, size", [(0.5, 0.4, 0.2), (0.1, 0.3, 0.05), (0.9, 0.9, 0.1)])
def test_a_head_crop_has_a_trained_shape_and_the_head_inside(
    height: int, width: int, x: float, y: float, size: float
) -> None:
    small = min(height, width)
    person = track(range(60), x * width, y * height, size * small)
    settings = PrepareSettings(mode="i2v")
    crop = crop_of(look(60, [person], [range(60)], size=(height, width)), person, range(10, 50), settings)
    left, top, right, bottom = crop.bounds[0].tolist()
    assert crop.size in settings.sizes and 0 <= left < right <= width and 0 <= top < bottom <= height
    assert (right - left) / (bottom - top) == pytest.approx(crop.size[1] / crop.size[0], rel=0.01)
    assert crop.enlargement == pytest.approx(crop.size[1] / (right - left))
    head = head_box(face(x * width, y * height, size * small))
    seen = (max(head[0], 0), max(head[1], 0), min(head[2], width), min(head[3], height))
    assert left <= seen[0] + 1 and top <= seen[1] + 1 and right >= seen[2] - 1 and bottom >= seen[3] - 1
    assert size * small / (bottom - top) >= 0.1 or (bottom - top) == height or (right - left) == width


def test_a_head_with_room_around_it_lies_a_little_above_the_middle() -> None:
    person = track(range(60), 540, 960, 108)
    crop = crop_of(look(60, [person], [range(60)], size=(1920, 1080)), person, range(60), PrepareSettings(mode="i2v"))
    _, top, _, bottom = crop.bounds[0].tolist()
    _, hair, _, chin = head_box(face(540, 960, 108))
    assert ((hair + chin) / 2 - top) / (bottom - top) == pytest.approx(0.4, abs=0.005)


def test_an_aligned_crop_follows_the_face_and_repeats_on_duplicates() -> None:
    moving = Track(start=0, faces=tuple(face(100 + 2 * frame, 100, 60) for frame in range(50)))
    seen = look(50, [moving], [range(50)], size=(200, 300), duplicates=frozenset([21]))
    crop = crop_of(seen, moving, range(10, 40), PrepareSettings(mode="v2v"))
    middles = (crop.bounds[:, 0] + crop.bounds[:, 2]) / 2
    assert crop.size == (512, 512) and len(middles) == 30
    assert middles.diff()[:10] == pytest.approx(torch.full((10,), 2.0), abs=1e-3)
    assert torch.equal(crop.bounds[10], crop.bounds[11])  # frames 20 and 21


def broken_by(seen: Look, mode: str = "v2v", **bounds: float) -> set[str]:
    settings = PrepareSettings(mode=mode, sizes=((96, 96),), bounds=bounds)
    (span,) = plan_spans(seen, SHORTEST, LONGEST)
    crop = crop_of(seen, seen.tracks[0], span.frames, settings)
    return set(faults(clip_figures(seen, span, crop), settings.rules))


def test_frames_that_repeat_are_those_of_the_clip() -> None:
    seen = look(60, [track(range(60))], [range(60)], duplicates=frozenset([5, 10, 11, 20, 41, 50]))
    for start, stop, count in ((10, 41, 2), (9, 42, 4)):  # the first frame repeats none of the clip's
        figures = clip_figures(seen, Span(start=start, stop=stop, track=0), None)
        assert figures["frozen_share"] == pytest.approx(count / (stop - start - 1))


def test_each_fault_breaks_its_rule() -> None:
    spoken, all_of_it = [range(10, 50), range(60, 100)], range(110)
    size = {"size": (400, 400)}

    def person(**changes: object) -> Track:
        return track(all_of_it, **{"x": 200, "y": 200, "size": 170, "spoken": spoken, **changes})

    def seen(one: Track, **changes: object) -> Look:
        return look(110, [one], spoken, **{**size, **changes})

    good = seen(person())
    assert broken_by(good) == broken_by(good, "i2v") == set()
    assert broken_by(seen(person(size=100))) == {"face_size"}
    assert broken_by(seen(person(nose_offset=-0.5))) == {"nose_offset"}
    assert broken_by(seen(person(flag=0.4))) == {"face_share"}
    assert broken_by(seen(person(x=0))) == {"inside_share"}
    assert broken_by(seen(person(motion=0.0))) == {"mouth_motion"}
    assert broken_by(seen(person(), pixels=(5.0, 120.0, 0.0))) == {"sharpness"}
    assert broken_by(seen(person(), pixels=(80.0, 20.0, 0.5))) == {"brightness", "clipped_share"}
    assert broken_by(seen(person(), duplicates=frozenset(range(20, 110)))) == {"frozen_share"}
    assert broken_by(seen(person(), power=torch.full((110,), 1e-3))) == {"speech_to_noise"}
    assert broken_by(seen(person(), power=good.power * 1e-3)) == {"loudness"}
    flash = torch.full((110,), 100.0)
    flash[70] = 160
    assert broken_by(seen(person(), light=flash)) == {"brightness_jump"}
    flash[70:] = 40  # and it stays dark
    assert broken_by(seen(person(), light=flash)) == {"brightness_jump"}
    beside = dataclasses.replace(good, tracks=(*good.tracks, track(all_of_it, 210, 290, 100)))
    assert "other_face_share" in broken_by(beside)
    assert broken_by(good, min_seconds=5, max_frozen_share=0) == {"seconds"}


def test_a_face_is_judged_by_its_worst_frames_and_by_others_of_its_size() -> None:
    faces = tuple(face(50, 50, 40, nose_offset=0.6 if frame < 5 else 0.0) for frame in range(50))
    person, whole = Track(start=0, faces=faces), torch.tensor([0.0, 0, 200, 200]).expand(50, 4)
    inside = torch.ones(50)
    inside[40:45] = 0.5
    figures = face_figures(person, range(50), [track(range(50), 150, 150, 10)], whole, inside)
    assert figures["nose_offset"] == pytest.approx(0.6) and figures["inside_share"] == 0.5
    assert figures["other_face_share"] == 0.0  # somebody far behind
    assert face_figures(person, range(50), [track(range(25), 150, 150, 40)], whole, inside)["other_face_share"] == 0.5


def test_a_look_is_read_as_it_was_written(tmp_path) -> None:
    gaps = Track(start=3, faces=(face(40, 40, 20), None, face(41, 40, 20, 0.3, yaw=3.5)))
    seen = look(30, [gaps], [range(5, 9)], cuts=[10], duplicates=frozenset([4, 7]))
    file = {"size": 5, "modified_ns": 7}
    write_look(tmp_path / "look.safetensors", seen, file)
    again = read_look(tmp_path / "look.safetensors", file)
    assert again is not None and read_look(tmp_path / "look.safetensors", {"size": 5, "modified_ns": 8}) is None
    for name, value in vars(seen).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(again, name)), name
        elif name != "tracks":
            assert value == getattr(again, name), name
    (read,) = again.tracks
    assert read.start == 3 and read.faces[1] is None
    for one, other in ((gaps.faces[0], read.faces[0]), (gaps.faces[2], read.faces[2])):
        assert one is not None and other is not None and one.anchors == other.anchors
        assert {**vars(one), "anchors": 0} == {**vars(other), "anchors": 0}
