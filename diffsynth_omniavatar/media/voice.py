"""Where somebody speaks in a sound, by Silero VAD (https://github.com/snakers4/silero-vad).

Its network is read from the file in its package, which is not imported: that would set torch to one thread.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from .timeline import SAMPLE_RATE

_BLOCK = 512
"""Samples, 32 ms, that the network judges at a time."""

_BEGINS = 0.5
"""Probability of speech with which a span begins."""

_GOES_ON = 0.35
"""Probability down to which it goes on."""

_LONGEST_PAUSE = 3
"""Blocks without speech that do not end a span: 96 ms."""

_SHORTEST = 8
"""Blocks: spans below 0.25 s are noises."""

_MARGIN = 0.03
"""Seconds by which a span reaches beyond its first and its last block."""

_IN_USE = threading.Lock()
"""Held while the network hears a sound: it remembers what it has heard."""


def speech_spans(waveform: Tensor | Iterable[Tensor]) -> list[tuple[float, float]]:
    """Where somebody speaks: seconds at which each span begins and ends, in order and apart.

    Args:
        waveform: float32 [n], mono at 16 kHz, as `sound.speech_waveform` gives it; or its pieces one after the other,
            each of any length, so that a long sound need not fit into memory.
    """
    pieces = waveform.split(60 * SAMPLE_RATE) if isinstance(waveform, Tensor) else waveform
    network, waiting, samples = _network(), torch.zeros(0), 0
    probabilities: list[float] = []
    with _IN_USE, torch.no_grad(), _one_thread():
        network.reset_states()
        for piece in pieces:
            samples += len(piece)
            heard = torch.cat([waiting, piece.cpu().float()])
            whole = len(heard) // _BLOCK * _BLOCK
            waiting = heard[whole:]
            probabilities += [float(network(block, SAMPLE_RATE)) for block in heard[:whole].view(-1, _BLOCK)]
        if len(waiting):
            last = torch.nn.functional.pad(waiting, (0, _BLOCK - len(waiting)))
            probabilities.append(float(network(last, SAMPLE_RATE)))
    return _spans(probabilities, samples / SAMPLE_RATE)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Several threads wait for each other at every small step: on a busy machine they took 40 times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _spans(probabilities: Sequence[float], duration: float) -> list[tuple[float, float]]:
    """Spans of speech in seconds, from its probability in each block of a sound that lasts `duration` seconds."""
    found: list[list[int]] = []
    for block, probability in enumerate(probabilities):
        goes_on = bool(found) and block - found[-1][1] <= _LONGEST_PAUSE
        if goes_on and probability >= _GOES_ON:
            found[-1][1] = block + 1
        elif not goes_on and probability >= _BEGINS:
            found.append([block, block + 1])
    spans: list[tuple[float, float]] = []
    for first, end in found:
        if end - first >= _SHORTEST:
            begins = max(spans[-1][1] if spans else 0.0, first * _BLOCK / SAMPLE_RATE - _MARGIN)
            spans.append((begins, min(duration, end * _BLOCK / SAMPLE_RATE + _MARGIN)))
    return spans


@cache
def _network() -> Any:
    """The network: probability of speech in a block, from samples [512] and their rate."""
    file = metadata.distribution("silero-vad").locate_file("silero_vad/data/silero_vad.jit")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of TorchScript as such
        return torch.jit.load(str(file), map_location="cpu")
