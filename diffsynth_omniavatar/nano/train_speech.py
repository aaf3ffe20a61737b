"""Train the nano family's wav2vec2 on the synthesiser's speech:

    python -m diffsynth_omniavatar.nano.train_speech runs/wav2vec2 --device cuda

It learns to tell, for each video frame, which phoneme sounds and how loud it is, from all of its hidden states through
a linear layer, which is thrown away afterwards. Of mouths it learns nothing: that is the denoiser's work.

Written to OUT: the folder that `AudioEncoder.from_pretrained` reads, in float16, and speech.json with the figures on
voices and words that training has not heard.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Wav2Vec2Model

from ..media.timeline import SAMPLES_PER_FRAME
from ..model.small_family import NANO
from ..model.speech_encoder import AudioEncoder, normalise
from ..system.atomic import write_atomically
from .command_line import trainer_parser, write_figures
from .draw import draw_speech
from .family import half
from .speaker.phonemes import PHONEMES

CLIP_FRAMES = 125
SHORTEST = 33
"""Frames of the shortest piece of a clip that a step hears."""
LOUDNESS_WEIGHT = 0.2
WARMUP_STEPS = 200


class SpeechReader(nn.Module):
    """wav2vec2 with a linear layer that reads phoneme and loudness from its features.

    Args:
        wav2vec2: trains. It stays in evaluation mode: there is enough speech, and nothing is masked.
    """

    def __init__(self, wav2vec2: Wav2Vec2Model) -> None:
        super().__init__()
        self.wav2vec2 = wav2vec2.eval()
        config = wav2vec2.config
        width = config.hidden_size * (config.num_hidden_layers + 2)
        self.head = nn.Linear(width, len(PHONEMES) + 1)

    def features(self, waveforms: Tensor) -> Tensor:
        """Features [B, F, C] of normalised waveforms [B, 640 F]: `AudioEncoder.encode` for several sounds, and with
        gradients.
        """
        rows = waveforms.shape[1] // SAMPLES_PER_FRAME
        frames = self.wav2vec2.feature_extractor(waveforms)
        speech = F.interpolate(frames, size=rows, mode="linear", align_corners=True)
        stub = waveforms[:, :SAMPLES_PER_FRAME]
        with self.wav2vec2.feature_extractor.register_forward_hook(lambda *_: speech):
            output = self.wav2vec2(stub, output_hidden_states=True, return_dict=True)
        return torch.cat([output.last_hidden_state, *output.hidden_states], dim=-1)

    def forward(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, F, phoneme] and loudness [B, F] of normalised waveforms [B, 640 F]."""
        read = self.head(self.features(waveforms))
        return read[..., :-1], read[..., -1]


def loudness(waveforms: Tensor) -> Tensor:
    """Logarithm [B, F] of each frame's power, of normalised waveforms [B, 640 F]; near 0 for an average frame."""
    return (waveforms.unflatten(1, (-1, SAMPLES_PER_FRAME)).square().mean(-1) + 1e-3).log()


def sample_pieces(waveforms: Tensor, phonemes: Tensor, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random normalised pieces [B, 640 f] and their labels [B, f], all of one length, from SHORTEST to whole clips."""
    total = phonemes.shape[1]
    frames = int(torch.randint(min(SHORTEST, total), total + 1, (1,), generator=generator))
    clips = torch.randint(len(phonemes), (batch,), generator=generator).to(phonemes.device)
    start = int(torch.randint(total - frames + 1, (1,), generator=generator))
    sound = waveforms[clips, start * SAMPLES_PER_FRAME : (start + frames) * SAMPLES_PER_FRAME]
    return torch.stack([normalise(row) for row in sound]), phonemes[clips, start : start + frames]


def train(
    waveforms: Tensor, phonemes: Tensor, *, steps: int, batch: int = 64, learning_rate: float = 1e-3, seed: int = 0
) -> tuple[SpeechReader, list[float]]:
    """Train a wav2vec2 from random weights.

    Args:
        waveforms, phonemes: [clip, 640 F] and [clip, F], on the device to train on.
        steps: of the optimizer, with a learning rate that rises for `WARMUP_STEPS` and falls to zero along a cosine.
        batch: pieces of a step.

    Returns:
        The model, and the loss of each step.
    """
    torch.manual_seed(seed)
    reader = SpeechReader(Wav2Vec2Model(NANO.wav2vec2)).to(waveforms.device)
    optimizer = torch.optim.AdamW(reader.parameters(), learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for step in range(steps):
        factor = min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * factor
        sound, labels = sample_pieces(waveforms, phonemes, batch, generator)
        logits, loud = reader(sound)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss = loss + LOUDNESS_WEIGHT * F.mse_loss(loud, loudness(sound))
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        if (step + 1) % 200 == 0:
            print(f"step {step + 1} loss {float(torch.stack(losses[-200:]).mean()):.3f}", flush=True)
    return reader, [float(loss) for loss in losses]


@torch.no_grad()
def figures(reader: SpeechReader, encoder: AudioEncoder, waveforms: Tensor, phonemes: Tensor) -> dict[str, float]:
    """Part of the frames whose phoneme is read rightly from the encoder's features, and r of the loudness."""
    right, loud = [], []
    for sound, labels in zip(waveforms, phonemes, strict=True):
        read = reader.head(encoder.encode(sound))
        right.append((read[:, :-1].argmax(-1) == labels).float().mean().item())
        wanted = loudness(normalise(sound)[None])[0]
        loud.append(float(torch.corrcoef(torch.stack([read[:, -1], wanted]))[0, 1]))
    return {"phonemes_right": float(np.mean(right)), "r_loudness": float(np.mean(loud))}


def save(wav2vec2: Wav2Vec2Model, folder: Path) -> None:
    """Write the folder of the speech model in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    wav2vec2.config.save_pretrained(folder)
    tensors = half(wav2vec2.state_dict())
    write_atomically(folder / "model.safetensors", lambda path: save_file(tensors, path, metadata={"format": "pt"}))


def _on_device(speech: tuple[np.ndarray, np.ndarray], device: str) -> tuple[Tensor, Tensor]:
    waveforms, phonemes = speech
    return torch.from_numpy(waveforms).to(device), torch.from_numpy(phonemes).to(device)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = trainer_parser("train_speech", __doc__, clips=4000, clips_help="drawn, of 5 s", evaluation_clips=100)
    add = parser.add_argument
    add("--steps", type=int, default=4000)
    add("--batch", type=int, default=64)
    add("--learning_rate", type=float, default=1e-3)
    given = parser.parse_args(arguments)
    begun = time.monotonic()
    train_set = _on_device(draw_speech(range(given.clips), CLIP_FRAMES, "train"), given.device)
    held_out = _on_device(draw_speech(range(given.evaluation_clips), CLIP_FRAMES, "evaluation"), given.device)
    print(f"{given.clips} clips drawn in {time.monotonic() - begun:.0f} s", flush=True)
    reader, _ = train(
        *train_set, steps=given.steps, batch=given.batch, learning_rate=given.learning_rate, seed=given.seed
    )
    save(reader.wav2vec2, given.out)
    encoder = AudioEncoder.from_pretrained(given.out).to(given.device)
    result = {**figures(reader, encoder, *held_out), "seconds": time.monotonic() - begun}
    write_figures(given.out / "speech.json", result)


if __name__ == "__main__":
    main()
