"""Damaged files: whatever is wrong with one, its readers name it in a ValueError or OSError, soon and in little memory.

    python tests/fuzz_media.py --count 2000 [--seed 0] [--only mkv]

Small files of every kind are made, damaged as a function of the seed and the case, and read in another process, which
is ended when a case takes too long. Exit code 1 if a case breaks the law; its file is kept and named.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEMORY = 2**31
"""Bytes that the reading process may have at its peak."""
SLOWEST = 60
"""Seconds that a case may take on a busy machine."""
TABLE_ROWS = [
    {"video": "clip.mp4", "prompt": "Speaks, softly.", "audio": "", "reference": "p.png", "mask": ""},
    {"video": "clip.mkv", "prompt": "Speaks\u2028two lines.", "audio": "s.wav", "reference": "", "mask": ""},
]


def write_files(folder: Path) -> list[str]:
    """Whole files of all kinds; gives those that are damaged, as paths from the folder."""
    import torch
    from data_clips import write_cache
    from PIL import Image
    from synthetic_clips import noise, write_levels, write_table

    from diffsynth_omniavatar.system.tensor_files import write_safetensors

    write_levels(folder / "clip.mp4", 8)
    for name, codec, sound in (("clip.mkv", "libx264", "aac"), ("clip.avi", "mpeg4", "mp3")):
        _write_clip(folder / name, codec, sound)
    import soundfile

    for name in ("s.wav", "s.flac"):
        soundfile.write(folder / name, noise(0.4).samples[0], 16000)
    picture = Image.effect_noise((24, 24), 50).convert("RGB")
    picture.save(folder / "p.png")
    picture.save(folder / "p.jpg")
    write_table(folder / "t.csv", TABLE_ROWS)
    (folder / "t.json").write_text(json.dumps(TABLE_ROWS, ensure_ascii=False), encoding="utf-8")
    (folder / "t.jsonl").write_text("\n".join(json.dumps(row) for row in TABLE_ROWS), encoding="utf-8")
    (folder / "list.txt").write_text("one\ntwo\n")
    (folder / "one").mkdir()
    write_cache(folder / "cache")
    tensors = {"audio_proj.proj.weight": torch.ones(4, 6), "blocks.0.self_attn.q.lora_A.weight": torch.ones(2, 6)}
    torch.save(tensors, folder / "weights.pt")
    write_safetensors(folder / "weights.safetensors", tensors, {"format": "pt"})
    inside = ("cache/index.json", "cache/clips/key0.safetensors", "cache/silence.safetensors")
    return sorted([path.name for path in folder.iterdir() if path.is_file()] + [*inside])


def _write_clip(path: Path, codec: str, sound: str) -> None:
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        audio = container.add_stream(sound, rate=16000, layout="mono")
        generator = np.random.default_rng(0)
        for _ in range(8):
            picture = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        samples = (generator.standard_normal((1, 5760)) * 0.1).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 16000
        resampler = av.AudioResampler(format=audio.codec_context.format, layout="mono", rate=16000)
        fifo = av.AudioFifo()
        for part in resampler.resample(frame):
            fifo.write(part)
        size = audio.codec_context.frame_size or 1024
        while (part := fifo.read(size, partial=True)) is not None:
            container.mux(audio.encode(part))
        for stream in (video, audio):
            container.mux(stream.encode(None))


def damaged_packet(content: bytes, number: int, seed: int) -> bytes:
    """A video file whose packet of this number, all but its first 8 bytes, is noise."""
    import io

    import av
    import numpy as np

    with av.open(io.BytesIO(content)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][number]
        start, end = packet.pos + 8, packet.pos + packet.size
    return content[:start] + np.random.default_rng(seed).bytes(end - start) + content[end:]


def damaged(content: bytes, others: Sequence[bytes], draw: random.Random) -> bytes:
    """The content with one to three kinds of damage."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        place, length = draw.randrange(len(data) + 1), draw.choice((1, 4, 16, 200, 1000))
        kind = draw.randrange(7)
        if kind == 0:
            for _ in range(draw.choice((1, 3, 20))):
                if data:
                    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            del data[place : place + length]
        elif kind == 3:
            data[place:place] = draw.randbytes(length)
        elif kind == 4:
            data[place:place] = data[place : place + length]
        elif kind == 5:
            data[place : place + 8] = draw.choice((b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7, b"9" * 8))
        else:
            data[:length] = draw.choice(others)[:length]
    return bytes(data)


def _readers(path: Path, folder: Path) -> list[Callable[[], Any]]:
    from data_clips import RECIPE, SETTINGS

    from diffsynth_omniavatar.data.recipe import Recipe
    from diffsynth_omniavatar.data.scan import check_dataset, scan_clips
    from diffsynth_omniavatar.data.tables import read_clips
    from diffsynth_omniavatar.data.video_clip import VideoClip
    from diffsynth_omniavatar.media.images import load_image
    from diffsynth_omniavatar.media.sound import load_sound
    from diffsynth_omniavatar.media.video import probe_video, read_frames
    from diffsynth_omniavatar.model.checkpoint import load_checkpoint, read_facts
    from diffsynth_omniavatar.system.tensor_files import read_pickle, read_safetensors

    kind = path.suffix
    recipe = Recipe(prefix_frames=(1,), max_tokens=200)
    clip = VideoClip(name=path.name, video=path, prompt="x")
    if path.parent.name in ("cache", "clips"):
        return [lambda: check_dataset(read_clips(folder / "cache"), SETTINGS, recipe)]
    if kind in (".mp4", ".mkv", ".avi"):
        checked = [lambda: check_dataset([clip], SETTINGS, recipe)]
        return [lambda: probe_video(path), lambda: read_frames(path), lambda: load_sound(path), *checked]
    if kind in (".wav", ".flac"):
        return [lambda: load_sound(path)]
    if kind in (".png", ".jpg"):
        return [lambda: load_image(path)]
    if kind in (".pt", ".safetensors"):
        read = read_pickle if kind == ".pt" else read_safetensors
        return [lambda: read(path), lambda: load_checkpoint(path), lambda: read_facts((path,))]
    return [lambda: scan_clips(read_clips(path), SETTINGS, RECIPE)]


def _law(path: Path, folder: Path) -> str:
    """How reading a file breaks the law; "" if it does not."""
    for read in _readers(path, folder):
        try:
            read()
        except (ValueError, OSError) as error:
            if path.name not in str(error):
                return f"{type(error).__name__} does not name {path.name}: {error}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{peak} bytes of memory" if peak > MEMORY else ""


def serve() -> None:
    """The reading process: a line with the folder and the path of each file comes in, what is wrong goes out."""
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        folder, name = json.loads(line)
        print(json.dumps(_law(Path(folder) / name, Path(folder))), flush=True)


class Reader:
    """The reading process, started again when it is gone."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def ask(self, folder: Path, name: str) -> str:
        """How reading a file breaks the law; "" if it does not."""
        if self.process is None:
            arguments = [sys.executable, __file__, "--serve"]
            pipe = subprocess.PIPE
            paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            self.process = subprocess.Popen(
                arguments, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=paths
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps([str(folder), name]), file=self.process.stdin, flush=True)
        if not select.select([self.process.stdout], [], [], SLOWEST)[0]:
            self.end()
            return f"takes more than {SLOWEST} s"
        answer = self.process.stdout.readline()
        if answer:
            return str(json.loads(answer))
        code = self.process.wait()
        self.end()
        return f"the process ended with {code}"

    def end(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@dataclass(frozen=True)
class Broken:
    """A case that breaks the law."""

    case: int
    name: str
    reason: str
    content: bytes


def fuzz(count: int, seed: int, only: str = "") -> tuple[list[Broken], Counter[str]]:
    """Read `count` damaged files; gives what broke, and how many of each file there were."""
    broken, seen, reader = list[Broken](), Counter[str](), Reader()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "whole"
        folder.mkdir()
        names = [name for name in write_files(folder) if only in name]
        whole = {name: (folder / name).read_bytes() for name in names}
        try:
            for case in range(count):
                draw = random.Random(f"{seed} {case}")
                name = names[case % len(names)]
                content = damaged(whole[name], [*whole.values()], draw)
                (folder / name).write_bytes(content)
                seen[name] += 1
                reason = reader.ask(folder, name)
                (folder / name).write_bytes(whole[name])
                if reason:
                    broken.append(Broken(case, name, reason, content))
        finally:
            reader.end()
    return broken, seen


def main() -> int:
    """Run the cases; prints what broke."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only files with this in their name")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve()
        return 0
    broken, seen = fuzz(args.count, args.seed, args.only)
    kept = Path(tempfile.mkdtemp(prefix="fuzz_media.")) if broken else None
    for one in broken:
        assert kept is not None
        file = kept / f"{one.case}_{Path(one.name).name}"
        file.write_bytes(one.content)
        print(f"case {one.case}, {file}: {one.reason}")
    print(f"{sum(seen.values())} damaged files ({dict(seen)}), {len(broken)} broke the law")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
