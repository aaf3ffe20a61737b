"""What of a source is shown when, where it gets a new mouth, and in which chunks that is made."""

import dataclasses
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from drawn_faces import face_at, still, track_at, with_faces

from diffsynth_omniavatar.generation.dub_faces import choose_tracks
from diffsynth_omniavatar.generation.dub_plan import NO_SPEECH, TOO_SHORT, place_track, plan_chunks, plan_face
from diffsynth_omniavatar.generation.dub_request import DubRequest
from diffsynth_omniavatar.generation.footage import Footage
from diffsynth_omniavatar.generation.playback import plan_playback
from diffsynth_omniavatar.generation.request import RequestError, TalkRequest
from diffsynth_omniavatar.media.faces.face import Track
from diffsynth_omniavatar.media.faces.faults import CUT_OFF, NO_FACE, PROFILE, TOO_SMALL, UNSURE
from diffsynth_omniavatar.media.faces.template import LATENTSYNC
from diffsynth_omniavatar.media.pictures import PictureTimes

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

MILLISECOND = Fraction(1, 1000)


def times_of(starts, stop, tick=MILLISECOND):
    return PictureTimes(starts=starts, stop=stop, tick=tick, first=Fraction(0))


def footage_of(*tracks, count=100, cuts=(), size=(160, 240)):
    times = times_of(range(count), count, Fraction(1, 25))
    return Footage(
        source=Path("film.mp4"), size=size, times=times, cuts=cuts, duplicates=frozenset(), tracks=tuple(tracks)
    )


def plan(footage, *tracks, seconds=0.0, extend="loop", **changes):
    playback = plan_playback(footage.times, seconds, extend)
    placed = [place_track(track, footage, LATENTSYNC) for track in tracks or footage.tracks]
    return playback, plan_face(footage, playback, placed, **{"length": 33, "overlap": 5, **changes})


UNEVEN = times_of([0, 40, 70, 150], 200)


def test_an_extended_video_goes_back_and_forth_or_stays_or_stops():
    loop = plan_playback(UNEVEN, 0.45, "loop")
    assert list(loop.pictures) == [0, 1, 2, 3, 2, 1, 0, 1, 2]
    # Each picture stays as long as it does in the source.
    assert list(loop.starts) == [0, 40, 70, 150, 200, 280, 310, 350, 380] and loop.stop == 460
    hold = plan_playback(UNEVEN, 0.3, "hold")
    assert list(hold.pictures) == [0, 1, 2, 3, 3, 3, 3] and list(hold.starts)[4:] == [200, 240, 280]
    assert hold.stop == 320 and hold.duration == 0.32
    for extend, seconds in (("stop", 9.0), ("loop", 0.1), ("hold", 0.2)):
        assert list(plan_playback(UNEVEN, seconds, extend).pictures) == [0, 1, 2, 3]
    assert list(plan_playback(times_of([0], 40), 0.1, "loop").pictures) == [0, 0, 0]
    coarse = plan_playback(times_of(range(3), 3, Fraction(1, 30)), 1.1, "hold")
    assert len(coarse.pictures) == 3 + 25 and coarse.stop == 33


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30), Fraction(30000, 1001), Fraction(60), Fraction(12)])
def test_a_picture_gets_the_frame_that_is_nearest_in_time(rate):
    count = 40
    playback = plan_playback(times_of(range(count), count, 1 / rate), 0, "stop")
    assert playback.frames == -(-count * 25 // rate)
    for place in range(count):
        frame = playback.frame_at(place)
        assert abs(Fraction(frame, 25) - place / rate) <= Fraction(1, 50) or frame == playback.frames - 1
    for frame in range(playback.frames):
        start, stop = playback.seconds(playback.place_at(frame))
        assert start <= frame / 25 + 0.001 and frame / 25 < stop


@pytest.mark.parametrize("frames", [5, 6, 33, 34, 37, 61, 62, 100, 1000])
def test_chunks_are_alike_and_cover_their_span(frames):
    chunks = plan_chunks(range(7, 7 + frames), 33, 5, index=3)
    assert [chunk.index for chunk in chunks] == list(range(3, 3 + len(chunks)))
    assert len({len(chunk.frames) for chunk in chunks}) == 1
    assert len(chunks[0].frames) % 4 == 1 and 5 <= len(chunks[0].frames) <= 33
    made = [frame for chunk in chunks for frame in chunk.frames[chunk.known :]]
    assert made[:frames] == list(range(7, 7 + frames)) and made == list(range(7, 7 + len(made)))
    assert len(made) - frames < 4 * len(chunks)
    assert [chunk.known for chunk in chunks] == [0] + [5] * (len(chunks) - 1)


def test_a_face_that_is_always_there_is_dubbed_throughout():
    footage = footage_of(still(0, 100, 120, 70))
    _, found = plan(footage)
    (span,) = found.spans
    assert span.places == span.frames == range(100) and set(found.reasons) == {None}
    assert found.strengths.eq(1).all()
    _, longer = plan(footage, seconds=7.0)
    assert [span.places for span in longer.spans] == [range(175)]


def test_a_cut_ends_a_chunk_without_a_fade():
    footage = footage_of(still(0, 40, 120, 70), still(40, 60, 60, 80), cuts=(40,))
    _, found = plan(footage)
    assert [span.places for span in found.spans] == [range(40), range(40, 100)]
    assert [span.chunks[0].known for span in found.spans] == [0, 0] and found.strengths.eq(1).all()
    # Backward too, when the video is extended.
    _, longer = plan(footage, seconds=8.0)
    assert [span.places for span in longer.spans] == [range(40), range(40, 159), range(159, 200)]


def test_gaps_pass_unchanged_with_a_fade():
    places = [(120, 70)] * 30 + [None] * 3 + [(120, 70)] * 67
    _, found = plan(footage_of(track_at(0, places)))
    assert [span.places for span in found.spans] == [range(30), range(33, 100)]
    assert found.reasons[29:34] == (None, NO_FACE, NO_FACE, NO_FACE, None)
    assert [chunk.index for span in found.spans for chunk in span.chunks] == list(range(found.chunks)) == [0, 1, 2, 3]
    wanted = torch.tensor([1, 1, 0.9, 0.7, 0.5, 0.3, 0.1, 0, 0, 0, 0.1, 0.3, 0.5, 0.7, 0.9, 1, 1])
    assert torch.allclose(found.strengths[23:40], wanted, atol=1e-5)
    assert found.strengths[0] == found.strengths[-1] == 1


def test_crops_are_smoothed_over_the_same_time_at_any_frame_rate():
    sizes = (48 + 4 * torch.randn(100, generator=torch.Generator().manual_seed(1))).tolist()
    footage = footage_of(Track(start=0, faces=tuple(face_at(120, 70, size) for size in sizes)))

    def tremble(rate):
        at_rate = dataclasses.replace(footage, times=times_of(range(100), 100, Fraction(1, rate)))
        return float(place_track(footage.tracks[0], at_rate, LATENTSYNC).transforms[:, 0, 0].diff().std())

    assert tremble(100) < 0.5 * tremble(50) < 0.25 * tremble(25)


def test_each_frame_that_stays_has_its_reason():
    track = with_faces(
        still(0, 100, 120, 70),
        {20: {"nose_offset": 0.5}, 40: {"score": 0.5}, 60: {"flag": 0.4}, 63: {"nose_offset": -0.5}},
    )
    _, found = plan(footage_of(track))
    stays = {place: reason for place, reason in enumerate(found.reasons) if reason is not None}
    assert stays == {20: PROFILE, 40: UNSURE, 60: UNSURE, 61: TOO_SHORT, 62: TOO_SHORT, 63: PROFILE}
    assert set(plan(footage_of(still(0, 100, 5, 70)))[1].reasons) == {CUT_OFF}
    assert set(plan(footage_of(still(0, 100, 120, 70, size=30)))[1].reasons) == {TOO_SMALL}
    _, late = plan(footage_of(still(30, 50, 120, 70)))
    assert [span.places for span in late.spans] == [range(30, 80)] and late.reasons[29] == late.reasons[80] == NO_FACE


def test_a_mouth_that_would_go_before_it_has_come_is_left_as_it_is():
    aside = {place: {"nose_offset": 0.5} for place in (6, 40, 47, 60, 68)}
    _, found = plan(footage_of(with_faces(still(0, 100, 120, 70), aside)))
    spans = [span.places for span in found.spans]
    assert spans == [range(6), range(7, 40), range(48, 60), range(61, 68), range(69, 100)]
    assert set(found.reasons[41:47]) == {TOO_SHORT} and found.strengths[40:48].eq(0).all()


def test_only_speech_is_dubbed_where_gaps_are_kept():
    _, found = plan(footage_of(still(0, 100, 120, 70)), speech=[(1.0, 1.2), (1.4, 1.6), (3.9, 9.0)])
    # 0.3 s of margin; the pause of 0.2 s is none.
    assert [span.places for span in found.spans] == [range(17, 48), range(90, 100)]
    assert set(found.reasons[48:90]) == {NO_SPEECH}
    assert found.strengths[25:40].eq(1).all() and found.strengths[17] < 0.2


def test_faces_are_chosen_by_place_size_and_number():
    left, large, small = still(0, 50, 60, 80, 50), still(0, 50, 160, 80, 60), still(0, 50, 210, 80, 20)
    later = still(60, 40, 100, 80, 40)
    footage = footage_of(left, large, small, later, cuts=(55,))
    assert choose_tracks(footage, ["largest"]) == [[large, later]]
    assert choose_tracks(footage, ["left"]) == [[left, later]]
    assert choose_tracks(footage, ["right"]) == [[large, later]]  # the small one stands behind
    assert choose_tracks(footage, ["2", "3"]) == [[large], [small]]
    back = still(70, 30, 150, 80, 60)
    assert choose_tracks(footage_of(left, large, back), ["largest"]) == [[large, back]]
    with pytest.raises(RequestError, match=r"face 5 is not there; the video has 1 \(left, 50 pixels, 0.0-2.0 s\); 2"):
        choose_tracks(footage, ["5"])
    with pytest.raises(RequestError, match="face 2 and face largest mean the same face"):
        choose_tracks(footage, ["2", "largest"])


def test_the_speaker_moves_the_lips_while_there_is_a_voice(monkeypatch):
    module = choose_tracks.__globals__
    monkeypatch.setitem(module, "load_sound", lambda *_, **__: None)
    monkeypatch.setitem(module, "speech_waveform", lambda _: None)
    monkeypatch.setitem(module, "speech_spans", lambda _: [(1.0, 2.0)])
    moving = {place: {"openness": 0.1 * (place % 2)} for place in range(100)}
    chewing = {place: moving[place] for place in range(100) if not 25 <= place < 50}
    speaker = with_faces(still(0, 100, 60, 80), {place: moving[place] for place in range(25, 50)})
    both = footage_of(with_faces(still(0, 100, 160, 80, 60), chewing), speaker)
    assert choose_tracks(both, ["speaking"]) == [[speaker]]
    always = with_faces(both.tracks[0], {place: {"openness": 0.12 * (place % 2)} for place in range(100)})
    assert choose_tracks(footage_of(always, speaker), ["speaking"]) == [[speaker]]
    monkeypatch.setitem(module, "speech_spans", lambda _: [])
    with pytest.raises(RequestError, match="face speaking: nobody speaks in the sound of film"):
        choose_tracks(both, ["speaking"])


def test_of_many_faces_a_message_tells_of_the_largest():
    told = footage_of(*(still(0, 9, 60, 80, 20 + number) for number in range(12))).faces()
    assert told.startswith("5 (left, 24 pixels") and told.endswith("0.0-0.4 s); 4 smaller ones")


GOOD = {"video": "film.mp4", "audio": "speech.wav", "out": "dubbed.mp4"}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"face": ["1", "2"]}, "face is given 2 times and audio 1 times"),
        ({"audio": []}, "audio is empty"),
        ({"face": "0"}, "face is '0', wanted largest, left, right, speaking or a number from 1 on"),
        ({"extend": "bounce"}, "extend is 'bounce', wanted loop, hold, stop"),
        ({"keep_audio": "yes"}, "keep_audio is 'yes', wanted no, gaps, or a loudness like -20dB"),
        ({"keep_audio": "9999dB"}, "keep_audio is '9999dB', wanted no, gaps, or a loudness like -20dB"),
        ({"out": "film.mp4"}, "out film.mp4 is the file of video too"),
        ({"video": "me@2x.mp4", "out": "me@2x.mp4"}, "^out me@2x.mp4 is the file of video too"),
        ({"debug_video": "dubbed.mp4"}, "debug_video dubbed.mp4 is the file of out too"),
        ({"debug_video": "debug.avi"}, "debug_video debug.avi must end in"),
        ({"steps": 0, "overlap": 2}, "overlap is 2.*steps is 0"),
    ],
)
def test_wrong_requests_are_named(wrong, told):
    with pytest.raises(RequestError, match=told):
        DubRequest(**{**GOOD, **wrong})


def test_a_talk_request_for_a_video_becomes_a_dub():
    request = DubRequest.of_talk(TalkRequest(prompt="p", steps=3, silence=0.5, **GOOD))
    assert (request.prompt, request.steps, request.silence, request.faces) == ("p", 3, 0.5, ["largest"])
    for wrong in ({"image": "face.png"}, {"paste_source": False}):
        with pytest.raises(RequestError, match=f"{next(iter(wrong))} is for a video that the model takes whole"):
            DubRequest.of_talk(TalkRequest(prompt="p", **GOOD, **wrong))
    gains = {"no": 0.0, "gaps": 1.0, "-20dB": 0.1, "6 db": 10**0.3}
    for keep, gain in gains.items():
        assert DubRequest(**GOOD, keep_audio=keep).original_gain == pytest.approx(gain)


def test_frames_of_a_span_show_no_picture_from_before_it():
    times = times_of(range(120), 120, Fraction(1, 60))
    footage = dataclasses.replace(footage_of(still(41, 79, 120, 70), cuts=(41,)), times=times)
    playback, found = plan(footage)
    (span,) = found.spans
    assert {span.picture(frame, playback) for frame in span.frames} <= set(range(41, 120))


def test_frames_of_a_chunk_show_no_picture_from_behind_its_span():
    playback, found = plan(footage_of(still(0, 42, 120, 70), cuts=(42,)))
    (span,) = found.spans
    frames = [frame for chunk in span.chunks for frame in chunk.frames]
    assert max(frames) > 41 and {span.picture(frame, playback) for frame in frames} == set(range(42))


def test_five_frames_are_enough():
    (span,) = plan(footage_of(still(0, 5, 120, 70)))[1].spans
    assert span.places == range(5)
    assert not plan(footage_of(still(0, 4, 120, 70)))[1].spans


def test_a_repeated_picture_keeps_the_place_of_its_crop():
    track = track_at(0, [(100 + frame, 70) for frame in range(10)])
    placed = place_track(track, dataclasses.replace(footage_of(track), duplicates=frozenset([5])), LATENTSYNC)
    assert torch.equal(placed.transform(5), placed.transform(4)) and not torch.equal(
        placed.transform(6), placed.transform(4)
    )
