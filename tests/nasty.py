"""A folder of 40 raw files as people have them, good and bad, for whatever takes footage from outside.

    python tests/nasty.py FOLDER [--seed 0] [--frames 60]

Faces are frames of the real clips where those are present, else drawn people.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from fuzz_media import damaged_packet
from media_files import set_matrix, tone
from PIL import Image

from diffsynth_omniavatar.media.images import scale_and_crop
from diffsynth_omniavatar.media.sound import load_sound, speech_waveform
from diffsynth_omniavatar.media.video import iter_frames
from diffsynth_omniavatar.nano.speaker.clips import draw_clip

RATE = 16000
REAL_CLIPS = (("demo1_video", 484, 344), ("demo3_video", 404, 304))
"""Real clips, and the row and the column at which a square of 512 pixels around the head begins."""


@dataclass(frozen=True)
class Nasty:
    """A file of the folder."""

    name: str
    what: str
    fault: str = ""
    """What its readers say, a regular expression; "" for a file that can be read, all pictures and the sound."""


@dataclass(frozen=True, eq=False)
class People:
    """Two people who talk: uint8 frames [F, S, S, 3], and the first one's sound, float32 [n] at 16 kHz."""

    first: np.ndarray
    second: np.ndarray
    speech: np.ndarray


def drawn_people(frames: int, size: int = 128) -> People:
    """People whom no detector of real faces need find."""
    one, other = (draw_clip(seed, frames, split="train") for seed in (0, 1))
    return People(_scaled(one.frames, size), _scaled(other.frames, size), one.waveform)


def real_people(folder: Path, frames: int, size: int = 384) -> People:
    """Heads and shoulders out of the real clips."""
    people = []
    for name, row, column in REAL_CLIPS:
        whole = iter_frames(folder / "talking_heads" / f"{name}.mp4", 0, frames)
        heads = np.stack([frame[row : row + 512, column : column + 512].numpy() for frame in whole])
        people.append(_scaled(heads, size))
    sound = speech_waveform(load_sound(folder / "talking_heads" / "demo1_video.mp4")).numpy()
    return People(people[0], people[1], sound[: frames * RATE // 25])


def _scaled(frames: np.ndarray, size: int) -> np.ndarray:
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2)
    fitted = torch.cat([scale_and_crop(picture[None].float(), (size, size), black=0.0) for picture in pictures])
    return fitted.permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8).numpy()


def encode(
    path: Path,
    frames: Sequence[np.ndarray] | np.ndarray,
    sound: np.ndarray | None = None,
    *,
    times: Sequence[int] | None = None,
    clock: int = 25,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    layout: str = "mono",
    sound_at: float = 0.0,
    sounds: int = 1,
    tags: dict[str, Any] | None = None,
    **options: str,
) -> Path:
    """Write a video; picture k comes at times[k] / clock seconds, and the sound float32 [n] or [channels, n]."""
    if codec == "libx264":
        options = {"preset": "ultrafast", "crf": "20", **options}
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25, options=options)
        video.height, video.width, video.pix_fmt = *frames[0].shape[:2], pixels
        video.codec_context.time_base = Fraction(1, clock)
        for name, value in (tags or {}).items():
            setattr(video.codec_context, name, value)
        tracks = []
        if sound is not None:
            tracks = [container.add_stream("aac", rate=RATE, layout=layout) for _ in range(sounds)]
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(format=pixels, dst_colorspace=video.codec_context.colorspace)
            frame.pts, frame.time_base = index if times is None else times[index], Fraction(1, clock)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for track in tracks:
            assert sound is not None
            for part in _sound_blocks(np.atleast_2d(sound), layout, sound_at):
                container.mux(track.encode(part))
            container.mux(track.encode(None))
    return path


def to_hlg(frames: np.ndarray) -> np.ndarray:
    """sRGB frames as BT.2020 in HLG (BT.2100), whose signal of 75 % is the reference white."""
    to_2020 = np.array([[0.627, 0.329, 0.043], [0.069, 0.920, 0.011], [0.016, 0.088, 0.896]], np.float32)
    light = 0.265 * (frames.astype(np.float32) / 255) ** 2.2 @ to_2020.T
    dark = np.sqrt(3 * light)
    bright = 0.17883277 * np.log(np.maximum(12 * light - 0.28466892, 1e-6)) + 0.55991073
    return (255 * np.where(light <= 1 / 12, dark, bright)).round().astype(np.uint8)


def _sound_blocks(samples: np.ndarray, layout: str, start: float) -> Iterator[av.AudioFrame]:
    for place in range(0, samples.shape[1], 1024):
        block = np.ascontiguousarray(samples[:, place : place + 1024], np.float32)
        part = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
        part.sample_rate, part.time_base, part.pts = RATE, Fraction(1, RATE), round(start * RATE) + place
        yield part


class Writer:
    """Makes the files; what a seed decides is the same each time."""

    def __init__(self, folder: Path, people: People, seed: int) -> None:
        self.folder, self.people, self.seed = folder, people, seed
        self.files: list[Nasty] = []

    def add(self, name: str, what: str, make: Callable[[Path], Any], fault: str = "") -> None:
        make(self.folder / name)
        self.files.append(Nasty(name, what, fault))

    def random(self, *key: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *key))

    def person(self, path: Path, **options: Any) -> Path:
        """The first person, who talks."""
        return encode(path, options.pop("frames", self.people.first), self.people.speech, **options)

    def write(self) -> list[Nasty]:
        for files in (self.broken, self.times, self.sounds, self.pictures, self.contents, self.names):
            files()
        return self.files

    def broken(self) -> None:
        """Files that are no videos, or no longer."""
        self.add("good.mp4", "nothing is wrong with it", self.person)
        good = (self.folder / "good.mp4").read_bytes()
        self.add(
            "truncated.mp4",
            "its second half is missing, and with it the index",
            lambda path: path.write_bytes(good[: len(good) // 2]),
            "cannot be read",
        )
        self.add("truncated.mkv", "its second half is missing; the first can be played", self._half_of_mkv)
        self.add("empty.mp4", "zero bytes", lambda path: path.write_bytes(b""), "cannot be read")
        self.add("text.mp4", "a text", lambda path: path.write_text("no video\n" * 100), "cannot be read")
        self.add("picture.mp4", "a picture of wrong extension", self._photo, "is an image")
        self.add("speech.mp4", "a sound of wrong extension", self._sound_alone, "no video stream")
        self.add("video.txt", "a video of wrong extension", lambda path: path.write_bytes(good))
        self.add(
            "damaged.mp4",
            "a packet in the middle is noise",
            lambda path: path.write_bytes(damaged_packet(good, len(self.people.first) // 2, self.seed)),
            "damaged",
        )
        self.add("folder.mp4", "a folder", Path.mkdir, "is not a file")
        self.add("gone.mp4", "a link to nothing", lambda path: path.symlink_to("nothing.mp4"), "no such file")
        self.add("pipe.mp4", "a pipe, from which nothing comes", os.mkfifo, "is not a file")

    def times(self) -> None:
        """Pictures that do not come 25 times a second."""
        count = len(self.people.first)
        gaps = self.random(1).integers(10, 70, count - 1)
        uneven = [0, *np.cumsum(gaps).tolist()]
        self.add("variable.mp4", "a variable rate", lambda path: self.person(path, times=uneven, clock=1000))
        self.add(
            "3fps.mp4",
            "3 frames a second",
            lambda path: self.person(path, frames=self.people.first[::8], times=range((count + 7) // 8), clock=3),
        )
        self.add("120fps.mp4", "120 frames a second", lambda path: self.person(path, clock=120))
        self.add("one.mp4", "1 frame", lambda path: encode(path, self.people.first[:1]), "no sound track")
        self.add(
            "stuck.mkv",
            "a picture that stays for a minute",
            lambda path: self.person(
                path, times=[40 * k + 60_000 * (k > count // 2) for k in range(count)], clock=1000
            ),
            "stays from",
        )

    def sounds(self) -> None:
        """Sound that is not one track as long as the picture."""
        first, speech = self.people.first, self.people.speech
        surround = speech * np.array([0.3, 0.3, 1, 0.1, 0.2, 0.2], np.float32)[:, None]
        quiet = np.zeros_like(speech)
        hiss = (0.1 * self.random(2).standard_normal(len(speech))).astype(np.float32)
        self.add("surround.mp4", "5.1 sound", lambda path: encode(path, first, surround, layout="5.1"))
        self.add("mute.mp4", "no sound", lambda path: encode(path, first), "no sound track")
        self.add("silent.mp4", "a silent sound", lambda path: encode(path, first, quiet), "is silent")
        self.add("hiss.mp4", "noise in place of speech", lambda path: encode(path, first, hiss))
        self.add("late.mkv", "sound that starts 0.3 s late", lambda path: self.person(path, sound_at=0.3))
        self.add("short sound.mp4", "half of the sound", lambda path: encode(path, first, speech[: len(speech) // 2]))
        self.add("languages.mp4", "two sound tracks", lambda path: self.person(path, sounds=2))

    def pictures(self) -> None:
        """Pictures that are not stored as they are seen."""
        first = self.people.first
        wide = np.repeat(first, 2, axis=2)[:, ::2, ::2]  # half as high: pixels are twice as high as wide
        self.add("rotated.mp4", "a phone held upright", lambda path: self._turned(path, np.rot90(first, 1, (1, 2))))
        self.add(
            "mirrored.mov",
            "a mirrored selfie",
            lambda path: self._turned(path, first[:, :, ::-1], (-1, 0, 0, 1)),
        )
        self.add(
            "askew.mp4",
            "to be shown at 45 degrees",
            lambda path: self._turned(path, first, (0.7, 0.7, -0.7, 0.7)),
            "askew",
        )
        self.add(
            "anamorphic.mp4",
            "non-square pixels",
            lambda path: self.person(path, frames=wide, tags={"sample_aspect_ratio": Fraction(1, 2)}),
        )
        hdr = {"color_trc": 18, "color_primaries": 9, "colorspace": 9}
        self.add(
            "hdr.mp4",
            "HDR: 10 bits, BT.2020, HLG",
            lambda path: self.person(
                path,
                frames=to_hlg(first),
                codec="libx265",
                pixels="yuv420p10le",
                tags=hdr,
                preset="ultrafast",
                **{"x265-params": "log-level=0"},
            ),
        )
        self.add("4k.mp4", "3840x2160", self._four_k)
        self.add(
            "odd.mkv",
            "odd sizes",
            lambda path: self.person(path, frames=first[:, : first.shape[1] // 2 * 2 - 7, :-21], pixels="yuv444p"),
        )
        self.add("two sizes.ts", "the picture's size changes", self._two_sizes, "the picture changes")

    def contents(self) -> None:
        """Pictures of something else than one person who talks."""
        first, second = self.people.first, self.people.second
        count, size = len(first), first.shape[1]
        scenes, speech = np.concatenate([first, second, first[:, :, ::-1]]), np.tile(self.people.speech, 3)
        blocks = self.random(3).integers(40, 216, (count, size // 32, size // 32, 3), dtype=np.uint8)
        nobody = blocks.repeat(32, axis=1).repeat(32, axis=2)
        far = np.full((count, 2 * size, 2 * size, 3), 90, np.uint8)
        far[:, size:, size:][:, : size // 4, : size // 4] = first[:, ::4, ::4]
        self.add("scenes.mp4", "three scenes joined", lambda path: encode(path, scenes, speech))
        self.add(
            "two people.mp4", "two people", lambda path: self.person(path, frames=np.concatenate([first, second], 2))
        )
        self.add("nobody.mp4", "nobody", lambda path: self.person(path, frames=nobody))
        self.add("photo.mp4", "a photo as video", lambda path: self.person(path, frames=first[:1].repeat(count, 0)))
        self.add("far.mp4", "a tiny face", lambda path: self.person(path, frames=far))

    def names(self) -> None:
        """Names that break lists, commands and pages; the files are good, and all the same."""
        good = self.folder / "good.mp4"
        names = ["12:30 Ü ñ 日本 🎬.mp4", "-i.mp4", '<img src=x onerror=alert(1)> & "a, b".mp4']
        for name in names:
            self.add(name, "a name that is no plain word", lambda path: shutil.copyfile(good, path))

    def _half_of_mkv(self, path: Path) -> None:
        whole = self.person(path).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])

    def _photo(self, path: Path) -> None:
        Image.fromarray(self.people.first[0]).save(path, format="PNG")

    def _sound_alone(self, path: Path) -> None:
        with av.open(str(path), "w", format="wav") as container:
            stream = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
            part = av.AudioFrame.from_ndarray(
                (tone(1, RATE) * 32767).astype(np.int16)[None], format="s16", layout="mono"
            )
            part.sample_rate = RATE
            container.mux(stream.encode(part))
            container.mux(stream.encode(None))

    def _turned(self, path: Path, stored: np.ndarray, matrix: Sequence[float] = (0, 1, -1, 0)) -> None:
        self.person(path, frames=stored)
        set_matrix(path, *matrix)

    def _four_k(self, path: Path) -> None:
        """At 5 frames a second, for it is the size that counts."""
        people = self.people.first[::5]
        size, factor = people.shape[1], 2160 // people.shape[1]
        frames = np.full((len(people), 2160, 3840, 3), 90, np.uint8)
        large = people.repeat(factor, 1).repeat(factor, 2)
        frames[:, : size * factor, 800 : 800 + size * factor] = large
        self.person(path, frames=frames, times=range(len(people)), clock=5)

    def _two_sizes(self, path: Path) -> None:
        first, count = self.people.first, len(self.people.first)
        half, parts = count // 2, []
        for number, frames in enumerate((first[:half], first[half:, ::2, ::2])):
            start = number * (half + 5)  # the second file's clock goes on behind the first one's
            times = range(start, start + len(frames))
            sound = self.people.speech[number * half * 640 :][: len(frames) * 640]
            parts.append(encode(path, frames, sound, times=times, sound_at=start / 25).read_bytes())
        path.write_bytes(b"".join(parts))


def write_nasty(folder: Path, people: People, seed: int = 0) -> list[Nasty]:
    """Write the 40 files into an empty folder."""
    return Writer(folder, people, seed).write()


def main() -> None:
    """Write a folder of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=60, help="frames of most files (default: 60)")
    args = parser.parse_args()
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    data = Path(os.environ.get("OMNIAVATAR_DATA", beside))
    people = real_people(data, args.frames) if data.is_dir() else drawn_people(args.frames)
    args.folder.mkdir(parents=True)
    for file in write_nasty(args.folder, people, args.seed):
        print(f"{file.name}: {file.what}")


if __name__ == "__main__":
    main()
