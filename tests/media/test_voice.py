"""Speech is found where it is, and in nothing else; nothing about torch is changed by looking for it."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffsynth_omniavatar.media import voice
from diffsynth_omniavatar.media.sound import load_sound, speech_waveform
from diffsynth_omniavatar.media.voice import speech_spans

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

BLOCK = 512 / 16000


def made_sound(name: str) -> Tensor:
    """One and a half seconds that are no speech."""
    time = torch.arange(24000) / 16000
    noise = torch.randn(24000, generator=torch.Generator().manual_seed(0))
    return {
        "silence": torch.zeros(24000),
        "noise": 0.1 * noise,
        "hum": 0.3 * torch.sin(2 * torch.pi * 120 * time) + 0.01 * noise,
        "chord": sum((0.1 * torch.sin(2 * torch.pi * rate * time) for rate in (220, 277, 330)), torch.zeros(24000)),
        "clicks": (torch.arange(24000) % 8000 < 20).float(),
    }[name]


@pytest.fixture
def speech(shared_data: Path) -> Tensor:
    """Real speech that begins after half a second: float32 [n] at 16 kHz."""
    return speech_waveform(load_sound(shared_data / "omniavatar_example" / "0000.MP3"))[: 16000 * 2]


@pytest.mark.parametrize("name", ["silence", "noise", "hum", "chord", "clicks"])
def test_what_is_no_speech_has_none(name: str):
    assert speech_spans(made_sound(name)) == []


@pytest.mark.parametrize("length", [0, 1, 511, 512, 513])
def test_short_sounds_are_heard(length: int):
    assert speech_spans(torch.zeros(length)) == []


def test_real_speech_is_found_where_it_is(speech: Tensor):
    ((begin, end),) = speech_spans(speech)
    assert 0.4 < begin < 0.6 and end == 2.0
    still = torch.zeros(16000)
    spans = speech_spans(torch.cat([still, speech, still, still, speech[8000:], still]))
    assert len(spans) == 2
    assert 1 < spans[0][0] < 1.6 and spans[0][1] == pytest.approx(3, abs=0.1)
    assert spans[1] == pytest.approx((5, 6.5), abs=0.1)


def test_quiet_speech_is_found(speech: Tensor):
    ((begin, _),) = speech_spans(0.1 * speech)
    assert 0.4 < begin < 0.7


def test_a_sound_in_pieces_has_the_same_spans(speech: Tensor):
    pieces = speech.split([7, 511, 1, 5000, 12345, len(speech) - 17864])
    assert speech_spans(iter(pieces)) == speech_spans(speech) != []


def test_one_sound_is_not_heard_in_the_next(speech: Tensor):
    first = speech_spans(speech)
    speech_spans(made_sound("noise"))
    assert speech_spans(speech) == first


@pytest.mark.parametrize(
    ("probabilities", "spans"),
    [
        ([0.6] * 8, [(0, 8)]),
        ([0.6] * 7, []),  # too short
        ([0.4] * 20, []),  # never sure
        ([0.0, 0.6] + [0.4] * 8 + [0.3] * 9, [(1, 10)]),
        ([0.9] * 8 + [0.0] * 3 + [0.4] * 3 + [0.0] * 9, [(0, 14)]),  # a short pause
        ([0.9] * 8 + [0.0] * 4 + [0.9] * 8, [(0, 8), (12, 20)]),
    ],
)
def test_spans_begin_when_sure_and_bridge_short_pauses(probabilities, spans):
    found = voice._spans(probabilities, len(probabilities) * BLOCK)
    wanted = [
        (max(0, first * BLOCK - 0.03), min(len(probabilities), end + 0.03 / BLOCK) * BLOCK) for first, end in spans
    ]
    assert [pytest.approx(span) for span in wanted] == found


def test_torch_is_left_as_it_is(recwarn: pytest.WarningsRecorder):
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        voice._network.cache_clear()
        speech_spans(torch.zeros(600))
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert not recwarn.list and not {"silero_vad", "torchaudio"} & set(sys.modules)
