"""Facts about a video file: what its header says, and what decoding it gives."""

from __future__ import annotations

from pathlib import Path

from ..media.files import open_media, sound_stream, video_stream
from ..media.sound import load_sound
from ..media.video import probe_video


def file_facts(path: str | Path) -> dict[str, float]:
    """Duration, rate and the place of the sound.

    Returns:
        container_duration: seconds that the header states; NaN if none.
        picture_duration: seconds from the first picture to the end of the last, by its packets.
        frame_rate: mean pictures per second.
        sound_offset: seconds by which the sound track starts after the first picture; NaN without sound.
        sound_duration: seconds of decoded sound from the first picture on; NaN without sound.

    Raises:
        ValueError: it cannot be read, or is not a video.
    """
    info = probe_video(path)
    with open_media(path) as container:
        video = video_stream(container, path)
        stated = float("nan") if container.duration is None else container.duration / 1_000_000
        offset = float("nan")
        if container.streams.audio:
            audio = sound_stream(container, path)
            starts = [
                float((stream.start_time or 0) * stream.time_base) if stream.time_base else 0.0
                for stream in (video, audio)
            ]
            offset = starts[1] - starts[0]
    sound_duration = float("nan")
    if info.has_sound:
        sound = load_sound(path, allow_silent=True)
        sound_duration = sound.samples.shape[1] / sound.rate
    return {
        "container_duration": stated,
        "picture_duration": info.duration,
        "frame_rate": info.frame_rate,
        "sound_offset": offset,
        "sound_duration": sound_duration,
    }
