"""Speech to features: the frozen wav2vec2 whose hidden states drive the avatar, one row per video frame (25 a second).

    encoder = AudioEncoder.from_pretrained("wav2vec2-base-960h").to("cuda")
    features = encoder.encode(waveform)  # [rows, 10752]

wav2vec2's convolutions give a frame every 320 samples; linear interpolation brings them to one row per video frame, and
the rows then go through its transformer. A row is the last hidden state followed by all hidden states. This is what
OmniAvatar (https://github.com/Omni-Avatar/OmniAvatar) hears, in float32.

Memory of the base model: the convolutions run in blocks of 30 s, at some 0.6 GB, and give what they give for the whole
sound. The transformer sees up to ONE_PASS_SECONDS at once, at some 0.2 GB a minute (13 hidden states of 1500 x 768
numbers, the same again joined, 2 x 3072 per row in a feed-forward); eager attention adds 12 x 1500^2 numbers, 0.1 GB,
times the minutes squared. Longer sound is cut into windows. The features themselves are 65 MB a minute.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.hooks import RemovableHandle
from transformers import Wav2Vec2Config, Wav2Vec2Model

from ..media.timeline import FRAME_RATE, SAMPLES_PER_FRAME
from ..system.tensor_files import DamagedFileError, read_pickle, read_safetensors
from ..system.text_files import parse_json, read_text

ONE_PASS_SECONDS = 300
"""Longest sound whose rows all attend to each other; longer sound is encoded in windows of this length."""

CONTEXT_SECONDS = 20
"""What a window hears on each side of the rows that are taken from it."""

BLOCK_SECONDS = 30
"""Longest piece that goes through the convolutions at once; it has no influence on the result."""


class AudioEncoder(torch.nn.Module):
    """Frozen wav2vec2 from a waveform to OmniAvatar's audio features.

    It stays in float32, in evaluation mode and out of autocast, whatever is done to the pipeline that it is a part of;
    it does move between devices.

    Args:
        wav2vec2: the speech model, with any attention that works in float32. It is taken over: frozen, float32.

    Raises:
        ValueError: its convolutions do not give one frame per 320 samples, as every wav2vec2 for 16 kHz does.
    """

    def __init__(self, wav2vec2: Wav2Vec2Model) -> None:
        super().__init__()
        stride = math.prod(wav2vec2.config.conv_stride)
        if 2 * stride != SAMPLES_PER_FRAME:
            raise ValueError(
                f"wav2vec2 config.json: conv_stride {wav2vec2.config.conv_stride} gives a frame per {stride} samples; "
                f"wanted {SAMPLES_PER_FRAME // 2}: use a model like facebook/wav2vec2-base-960h"
            )
        self.wav2vec2 = wav2vec2.float().requires_grad_(False).eval()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "AudioEncoder":
        """Load `folder`, a copy of facebook/wav2vec2-base-960h or the like, without any network access.

        Files: config.json and model.safetensors or pytorch_model.bin (read with `weights_only`). Weights that the
        encoder does not have (`lm_head`) are ignored.

        Raises:
            FileNotFoundError: the folder or one of the files is not there.
            ValueError: a file is damaged or of another kind, weights are missing or have another shape than
                config.json says.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"wav2vec2 folder {folder}: no config.json; wanted facebook/wav2vec2-base-960h")
        weights = _read_weights(folder)
        wav2vec2 = Wav2Vec2Model(_read_sizes(folder))
        wanted = wav2vec2.state_dict()
        wanted.pop("masked_spec_embed", None)  # serves only the augmentation in training; some files lack it
        faults = [f"{name} is missing" for name in wanted if name not in weights]
        faults += [
            f"{name} is {list(weights[name].shape)}, not {list(wanted[name].shape)}"
            for name in wanted
            if name in weights and weights[name].shape != wanted[name].shape
        ]
        if faults:
            raise ValueError(f"wav2vec2 folder {folder} does not fit its config.json: {'; '.join(faults)}")
        wav2vec2.load_state_dict({name: weights[name] for name in wanted}, strict=False, assign=True)
        return cls(wav2vec2)

    @property
    def feature_dim(self) -> int:
        """Width of a row: hidden_size * (num_hidden_layers + 2), 10752 for the base model."""
        config = self.wav2vec2.config
        return config.hidden_size * (config.num_hidden_layers + 2)

    @torch.no_grad()
    def encode(self, waveform: torch.Tensor, rows: int | None = None) -> torch.Tensor:
        """Features of a mono sound at 16 kHz.

        The waveform is normalised as a whole and then padded with zeros to 640 samples a row, which the model hears.

        Sound of more than ONE_PASS_SECONDS goes through the transformer in windows of that length, with CONTEXT_SECONDS
        or more on either side of the rows taken from one. Only attention is then narrower than in a single pass;
        normalisation, convolutions, their norm's statistics and positions are those of the whole sound (equal to
        1e-5). How far that moves the features depends on the weights. On 12 minutes made of 36 s of speech at
        varied speed and loudness, and a base model with **random weights** (trained ones were not measured) it was
        1.4 % RMS within a second of a seam, 1.3 % elsewhere and at most 1.4 % of the largest feature. With queries and
        keys times 20, so that a row attends to hardly more than one other, anywhere in the sound, it was 77 % RMS. If
        equality matters, stay within ONE_PASS_SECONDS or raise it.

        Args:
            waveform [n]: floating point, in [-1, 1], on any device.
            rows: number of video frames; by default the least that hold all samples, ceil(n / 640).

        Returns:
            [rows, feature_dim] float32 on the waveform's device; row i belongs to samples 640 i to 640 (i + 1).

        Raises:
            ValueError: the waveform is not one-dimensional, not floating point, empty, not finite or longer than rows.
        """
        _check_waveform(waveform)
        needed = -(-len(waveform) // SAMPLES_PER_FRAME)
        rows = needed if rows is None else rows
        if rows < needed:
            raise ValueError(
                f"waveform: {len(waveform)} samples need {needed} rows, got rows={rows}; sound is not squeezed: "
                f"cut the waveform to {rows * SAMPLES_PER_FRAME} samples or ask for more rows"
            )
        samples = F.pad(normalise(waveform.float()), (0, rows * SAMPLES_PER_FRAME - len(waveform)))
        features = torch.empty(rows, self.feature_dim, dtype=torch.float32, device=waveform.device)
        # transformers 4 draws from the global generator for its layer drop, even where nothing is dropped.
        with torch.autocast(self._device.type, enabled=False), torch.random.fork_rng(devices=[]):
            speech = self._convolve(samples)
            for start, end, first, last in _windows(rows, ONE_PASS_SECONDS * FRAME_RATE, CONTEXT_SECONDS * FRAME_RATE):
                window = self._transform(speech[..., start:end])
                features[first:last] = window[first - start : last - start]
        return features

    def silence(self, rows: int) -> torch.Tensor:
        """[rows, feature_dim] features of a silent sound, which stand for "no speech" when audio is dropped out."""
        return self.encode(torch.zeros(rows * SAMPLES_PER_FRAME, device=self._device))

    def train(self, mode: bool = True) -> "AudioEncoder":
        """Stay in evaluation mode: there is no dropout and no masking in a frozen encoder."""
        return super().train(False)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "AudioEncoder":
        """Let `.to()`, `.half()` and so on of this or an enclosing module change the device, never the dtype."""

        def keep_dtype(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _convolve(self, samples: torch.Tensor) -> torch.Tensor:
        """Convolved and interpolated sound [1, channel, row] of the normalised samples [640 * row].

        The convolutions see 400 samples in steps of 320, so 640 samples a row give 2 * row - 1 frames, and the
        interpolation with aligned corners takes every second one, which lies within the samples of its row. Hence
        blocks of whole rows can be treated on their own.
        """
        blocks = samples.split(BLOCK_SECONDS * FRAME_RATE * SAMPLES_PER_FRAME)
        grouped = self.wav2vec2.config.feat_extract_norm == "group"
        speech = []
        with self._norm_of_whole(samples) if grouped and len(blocks) > 1 else nullcontext():
            for block in blocks:
                frames = self.wav2vec2.feature_extractor(block[None].to(self._device))
                block_rows = -(-len(block) // SAMPLES_PER_FRAME)
                speech.append(F.interpolate(frames, size=block_rows, mode="linear", align_corners=True))
        return torch.cat(speech, dim=-1)

    def _norm_of_whole(self, samples: torch.Tensor) -> RemovableHandle:
        """Make the first convolution's norm, whose statistics run over time, use those of all samples meanwhile."""
        layer = self.wav2vec2.feature_extractor.conv_layers[0]
        mean, variance = (statistic.to(self._device) for statistic in _output_statistics(layer.conv, samples))
        return layer.layer_norm.register_forward_hook(
            lambda norm, inputs, _: F.batch_norm(inputs[0], mean, variance, norm.weight, norm.bias, eps=norm.eps)
        )

    def _transform(self, speech: torch.Tensor) -> torch.Tensor:
        """Features [row, feature_dim] of the convolved sound [1, channel, row]."""
        # How the encoder hands out its hidden states changes between versions of transformers, but not for the whole
        # model. So that runs, on a stub of sound, with the convolutions' output replaced.
        stub = speech.new_zeros(1, SAMPLES_PER_FRAME)
        with self.wav2vec2.feature_extractor.register_forward_hook(lambda *_: speech):
            output = self.wav2vec2(stub, output_hidden_states=True, return_dict=True)
        return torch.cat([output.last_hidden_state, *output.hidden_states], dim=-1)[0]


def normalise(waveform: torch.Tensor) -> torch.Tensor:
    """(w - mean) / sqrt(variance + 1e-7) of a waveform [n]: zero mean, unit variance, silence stays zero.

    This is `zero_mean_unit_var_norm` of transformers' Wav2Vec2FeatureExtractor.
    """
    return (waveform - waveform.mean()) / torch.sqrt(waveform.var(correction=0) + 1e-7)


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Weights of a folder under the names of a bare Wav2Vec2Model; FileNotFoundError if it has none."""
    if (folder / "model.safetensors").is_file():
        weights = read_safetensors(folder / "model.safetensors")
    elif (folder / "pytorch_model.bin").is_file():
        weights = _tensors_in(folder / "pytorch_model.bin")
    else:
        raise FileNotFoundError(f"wav2vec2 folder {folder}: neither model.safetensors nor pytorch_model.bin")
    names = {name: name.removeprefix("wav2vec2.") for name in weights}
    for old, new in (("conv.weight_g", "original0"), ("conv.weight_v", "original1")):  # spelling of torch 1.x
        names |= {name: key.replace(old, f"conv.parametrizations.weight.{new}") for name, key in names.items()}
    return {names[name]: value for name, value in weights.items()}


def _tensors_in(path: Path) -> dict[str, torch.Tensor]:
    content = read_pickle(path)
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise DamagedFileError(f"{path} holds {type(content).__name__}, wanted names and tensors")
    return content


def _read_sizes(folder: Path) -> Wav2Vec2Config:
    """The config.json of a folder, of a wav2vec2."""
    path = folder / "config.json"
    content = parse_json(read_text(path), str(path))
    kind = content.get("model_type") if isinstance(content, dict) else type(content).__name__
    if kind != "wav2vec2":
        raise ValueError(f"{path} is of a {kind} model, wanted wav2vec2, for instance facebook/wav2vec2-base-960h")
    return Wav2Vec2Config.from_dict(content)


def _check_waveform(waveform: Any) -> None:
    if not isinstance(waveform, torch.Tensor) or waveform.dim() != 1:
        got = f"shape {list(waveform.shape)}" if isinstance(waveform, torch.Tensor) else type(waveform).__name__
        raise ValueError(f"waveform: got {got}, wanted a tensor [samples] of mono sound")
    if not waveform.is_floating_point():
        raise ValueError(f"waveform: got {waveform.dtype}, wanted floating point in [-1, 1]: divide integer samples")
    if not len(waveform):
        raise ValueError("waveform: got no samples, wanted at least 1")
    if not waveform.isfinite().all():
        raise ValueError("waveform: got NaN or infinite samples, wanted finite ones in [-1, 1]")


def _output_statistics(conv: torch.nn.Conv1d, samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance over time [channel] of a one-channel convolution's output, without computing that output.

    It is linear in the patches that the kernel sees: with their mean m and covariance C, the output w . p + b has mean
    w . m + b and variance w C w. In float64, since C comes as a difference.
    """
    patches = samples.unfold(0, conv.kernel_size[0], conv.stride[0])  # [time, tap], a view
    total = torch.zeros(conv.kernel_size[0], dtype=torch.float64, device=samples.device)
    products = torch.outer(total, total)
    for part in patches.split(2**18):
        part = part.double()
        total += part.sum(0)
        products += part.T @ part
    mean = total / len(patches)
    covariance = products / len(patches) - torch.outer(mean, mean)
    weight = conv.weight[:, 0].to(mean)
    bias = 0.0 if conv.bias is None else conv.bias.to(mean)
    return (weight @ mean + bias).float(), ((weight @ covariance) * weight).sum(1).float()


def _windows(rows: int, window: int, context: int) -> Iterator[tuple[int, int, int, int]]:
    """Windows (start, end) of `rows` rows and the part (first, last) that is taken from each; ends are exclusive.

    The parts follow each other from 0 to `rows`. Windows are `window` long, or all rows are one window; between a part
    and an end of its window that is not an end of the sound lie at least `context` rows.
    """
    first = 0
    while first < rows:
        start = max(0, min(first - context, rows - window))
        end = min(start + window, rows)
        last = end if end == rows else end - context
        yield start, end, first, last
        first = last
