"""What the denoiser is conditioned on, as PipelineUnits of the host: the same for generation, training and
precomputing.

The data's path through the units (B batch, T latent frames, F = 4T-3 video frames, h = H/8, w = W/8):

| unit | from | to |
| --- | --- | --- |
| PromptUnit | text | `context` [B, token, C] |
| TargetUnit | training: the clip | `input_latents`, `noise` [B, 16, T, h, w] |
| AudioUnit | sound, or features [B, F, C] | `omni_audio` [B, F, C] in the positive inputs, zeros in the negative ones |
| ReferenceUnit | image | `omni_reference_latents` [B, 16, 1, h, w] |
| MaskedVideoUnit | source video, mouth mask | `omni_masked_latents` [B, 16, T, h, w], `omni_mouth_mask_latents` |
| ReferenceSequenceUnit | a second clip of the person | `omni_reference_sequence_latents` [B, 16, T, h, w] |
| PrefixUnit | frames that are known at the start | `omni_prefix_latents` [B, 16, P, h, w] |
| ConditionUnit | all latents above | `omni_y` [B, in_dim - 16, T, h, w] |
| GuidanceUnit | the two guidance scales | `omni_guidance` |
| RecordUnit | training: known latents, mouth mask | `omni_record`: what the loss covers, and what it saw |
| PrefixPostUnit | finished latents | the same with the known latents put back |

Latents that are already there (from a cache) are used as they are, and the network that makes them is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .. import host
from ..media.images import fit_image, image_to_tensor, load_image, to_unit_range
from ..media.sound import Sound, speech_waveform
from ..media.timeline import SAMPLES_PER_FRAME, audio_rows, latent_frames
from ..model.config import AUDIO_WINDOW

if TYPE_CHECKING:
    from .pipeline import OmniAvatarPipeline

ImageSource = str | Path | Image.Image
VideoSource = Sequence[Image.Image] | Tensor
SoundSource = str | Path | Sound | np.ndarray | Tensor
MaskSource = str | Path | Image.Image | Tensor

Inputs = dict[str, Any]


# --------------------------------------------------------------------------------------------------------------- pixels


def image_tensor(image: ImageSource, height: int, width: int) -> Tensor:
    """An image scaled and cropped to size as upstream does, [1, 3, H, W] in [-1, 1]."""
    return fit_image(image_to_tensor(load_image(image)), (height, width)).unsqueeze(0)


def video_tensor(video: VideoSource, height: int, width: int) -> Tensor:
    """A video scaled and cropped to size, [B, 3, F, H, W] in [-1, 1].

    Args:
        video: PIL images; or a uint8 tensor [F, H, W, 3]; or a float tensor [3, F, H, W] or [B, 3, F, H, W] in [-1, 1],
            which must have the size already.

    Raises:
        ValueError: no frames, or a tensor of another layout or size.
    """
    if isinstance(video, Tensor) and video.is_floating_point():
        if video.dim() not in (4, 5) or video.shape[-4] != 3 or tuple(video.shape[-2:]) != (height, width):
            raise ValueError(f"A float video is [3, frames, {height}, {width}], got {list(video.shape)}.")
        return video.reshape(-1, *video.shape[-4:])
    if len(video) == 0:
        raise ValueError("The video has no frames.")
    if isinstance(video, Tensor):
        if video.dtype != torch.uint8 or video.dim() != 4 or video.shape[3] != 3:
            raise ValueError(f"A uint8 video is [frames, H, W, 3], got {video.dtype} {list(video.shape)}.")
        frames = [fit_image(to_unit_range(frame).permute(2, 0, 1), (height, width)) for frame in video]
    else:
        frames = [image_tensor(frame, height, width)[0] for frame in video]
    return torch.stack(frames, dim=1).unsqueeze(0)


def encode_video(pipe: OmniAvatarPipeline, video: Tensor, tiled: bool, **tiles: Any) -> Tensor:
    """VAE latents of videos [B, 3, F, H, W] in [-1, 1]: [B, 16, T, h, w] in the pipeline's number format.

    One video at a time: the host's tiled encoding enlarges its tiles with each video of a batch.
    """
    pipe.load_models_to_device(["vae"])
    latents = [
        pipe.vae.encode(one.to(dtype=pipe.torch_dtype), device=pipe.device, tiled=tiled, **tiles)
        for one in video.split(1)
    ]
    return torch.cat(latents).to(dtype=pipe.torch_dtype, device=pipe.device)


# ---------------------------------------------------------------------------------------------------------------- masks


def draw_mouth_mask(size: int = 256) -> Tensor:
    """The built-in mouth mask for an aligned face that fills a square frame, [size, size]: 1 keep, 0 regenerate.

    The lower face from below the eyes to the chin is regenerated (41 % of the area), the nose bridge is kept.
    """
    axis = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    cheeks = ((x - 0.5).abs() < 0.463) & (y > 0.373) & (y < 0.57)
    jaw = (((x - 0.5) / 0.463) ** 2 + ((y - 0.57) / 0.375) ** 2 < 1) & (y >= 0.57)
    nose = ((x - 0.5).abs() < 0.195) & (y < 0.5)
    return 1.0 - ((cheeks | jaw) & ~nose).float()


def load_mouth_mask(mask: MaskSource | None, height: int, width: int) -> Tensor:
    """A mouth mask at the video's size, [1 or F, H, W]: 1 keep, 0 regenerate.

    Args:
        mask: None for the built-in one; an image like LatentSync's (white = keep); or a tensor [H, W] or [F, H, W] of 1
            and 0, one per video frame.

    Raises:
        ValueError: the layout is another, or the mask keeps or regenerates everything.
    """
    if mask is None:
        pixels = draw_mouth_mask()[None]
    elif isinstance(mask, Tensor):
        if mask.dim() not in (2, 3):
            raise ValueError(f"A mouth mask is [H, W] or [frames, H, W], got {list(mask.shape)}.")
        pixels = mask.float().reshape(-1, *mask.shape[-2:])
    else:
        pixels = torch.from_numpy(np.array(load_image(mask).convert("L"))).float()[None] / 255
    binary = (F.interpolate(pixels[:, None], (height, width), mode="bilinear")[:, 0] > 0.5).float()
    if binary.min() == 1 or binary.max() == 0:
        raise ValueError("The mouth mask keeps or regenerates the whole picture; white is kept, black regenerated.")
    return binary


def paste_outside_mouth(frames: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """Generated frames with the source's own pixels wherever the mouth mask keeps them.

    Inside the mouth, behind the mask's edge, the two fade into each other over 1/64 of the height: no seam shows.

    Args:
        frames, source: [..., F, H, W] in [-1, 1].
        mask: [1 or F, H, W], from `load_mouth_mask`.
    """
    reach = max(1, mask.shape[-2] // 64)
    around = F.pad(mask[:, None], (reach,) * 4, mode="replicate")
    near = F.avg_pool2d(around, 2 * reach + 1, stride=1)[:, 0]  # near one half at the edge
    kept = torch.where(mask == 1, 1.0, (2 * near).clamp(max=1)).to(frames)
    return frames + kept * (source.to(frames) - frames)


COLOUR_CELL = 8
"""Pixels a side of the cells whose mean colours `match_colours` compares."""
COLOUR_NEAR = 16 / 127.5
"""A cell whose colour differs by less, 16 of 255, shows the same as the original."""
COLOUR_RIDGE = 1e-3
"""Weight of leaving colours as they are, in units of the mean square of a colour in [-1, 1] of all cells."""


def match_colours(frames: Tensor, original: Tensor) -> Tensor:
    """A chunk in the colours of what it shows.

    Each chunk starts from frames that the VAE has decoded and encodes again, and what it changes of their colours adds
    up. Where a chunk shows the same as the original, both colours are known: that gives the linear map (of red, green,
    blue and 1; least squares) that is applied to all of it. Where nothing is the same, colours stay as they are.

    Args:
        frames: a generated chunk, [..., 3, F, H, W] in [-1, 1].
        original: the portrait [..., 3, 1, H, W], or the source video [..., 3, F, H, W].
    """
    found, wanted = _cell_colours(frames), _cell_colours(original.to(frames))
    same = (found - wanted).abs().amax(-1, keepdim=True) < COLOUR_NEAR
    error = torch.where(same, wanted - found, 0.0).flatten(-3, -2)
    known = torch.where(same, F.pad(found, (0, 1), value=1.0), 0.0).flatten(-3, -2)
    ridge = COLOUR_RIDGE * known.shape[-2] * torch.eye(4).to(known)
    change = torch.linalg.solve(known.mT @ known + ridge, known.mT @ error).to(frames)
    by_colour, shift = change[..., :3, :], change[..., 3, :, None, None, None]
    return (frames + torch.einsum("...ifhw,...io->...ofhw", frames, by_colour) + shift).clamp(-1, 1)


def _cell_colours(video: Tensor) -> Tensor:
    """[..., 3, F, H, W] -> float64 [..., F, cells, 3]."""
    pictures = video.float().movedim(-3, -4)
    cells = F.avg_pool2d(pictures.flatten(0, -4), COLOUR_CELL).unflatten(0, pictures.shape[:-3])
    return cells.flatten(-2).mT.double()


def mask_to_latents(mask: Tensor, latent_count: int) -> Tensor:
    """A pixel mask [1 or F, H, W] (1 keep) at latent size, [1, 1, T, H/8, W/8]: 0 keep, 1 generate.

    Bilinear, above one half, inverted. Of the four frames of a latent frame, a place is generated if any one's is.

    Raises:
        ValueError: F is neither 1 nor 4T-3.
    """
    small = F.interpolate(mask[:, None], scale_factor=1 / 8, mode="bilinear")[:, 0]
    generate = (small <= 0.5).float()
    if len(generate) == 1:
        return generate.expand(latent_count, -1, -1)[None, None]
    if latent_frames(len(generate)) != latent_count:
        raise ValueError(f"The mouth mask has {len(generate)} frames, wanted 1 or {4 * latent_count - 3}.")
    head, tail = generate[:1], generate[1:].unflatten(0, (-1, AUDIO_WINDOW)).amax(dim=1)
    return torch.cat([head, tail])[None, None]


def mask_video(video: Tensor, mask: Tensor, known_frames: int) -> Tensor:
    """Grey out the mouth: video [B, 3, F, H, W] in [-1, 1] times mask [1 or F, H, W], but for the first
    `known_frames`.
    """
    masked = video * mask.to(video)[None, None]
    masked[:, :, :known_frames] = video[:, :, :known_frames]
    return masked


# -------------------------------------------------------------------------------------------------- guidance and record


class AudioGuidance:
    """Adds the audio's own guidance to the host's two passes.

    With p, o, n the predictions with audio, without audio, and with negative text and no audio, s the text guidance
    and a the audio guidance, the wanted result is `n + s (o - n) + a (p - o)`, and the host computes `n + s (x - n)` of
    what the positive pass returns as x. So x is `o + a / s (p - o)`; with s = 0 the audio's part is added in the
    negative pass. Blends are in float32.

    Source: upstream's `log_video`, the branch for different scales.
    """

    def __init__(self, text_scale: float, audio_scale: float, tea_cache: host.TeaCache | None) -> None:
        self.text_scale = text_scale
        self.audio_scale = audio_scale
        self.tea_cache = tea_cache
        self._audio_part: Tensor | None = None

    def __call__(self, prediction: Tensor, without_audio: Callable[[host.TeaCache | None], Tensor]) -> Tensor:
        """The positive pass: blend a prediction with that of one more pass without audio."""
        silent = without_audio(self.tea_cache).float()
        difference = prediction.float() - silent
        if self.text_scale == 0:
            self._audio_part = self.audio_scale * difference
            return prediction
        return (silent + self.audio_scale / self.text_scale * difference).to(prediction.dtype)

    def negative(self, prediction: Tensor, _: Callable[[host.TeaCache | None], Tensor]) -> Tensor:
        """The negative pass of a text guidance of zero."""
        assert self._audio_part is not None
        return (prediction.float() + self._audio_part).to(prediction.dtype)


@dataclass
class StepRecord:
    """One training step: which latent frames and places the loss covers, and what went into the denoiser and came out.

    Attributes:
        known_frames: latent frames at the start that are out of the loss.
        weight: of the squared error: of places [B, 1, T - known_frames, h, w] with mean 1, times those of the clips'
            timesteps [B, 1, 1, 1, 1] where a batch has several clips; None for 1 everywhere.
        latents: noisy latents x_t with the known frames in them, [B, 16, T, h, w].
        prediction: of the flow, [B, 16, T, h, w].
        timestep: of each clip, 0..1000, [B].
        sigma: the noise level that made x_t, float32 [B, 1, 1, 1, 1].
    """

    known_frames: int = 0
    weight: Tensor | None = None
    latents: Tensor | None = None
    prediction: Tensor | None = None
    timestep: Tensor | None = None
    sigma: Tensor | None = None

    def keep(self, latents: Tensor, prediction: Tensor) -> Tensor:
        """Called by the model function; gives what the host's loss compares."""
        self.latents, self.prediction = latents, prediction
        return self.covered(prediction)

    def covered(self, flow: Tensor) -> Tensor:
        """The part of a flow [B, 16, T, h, w] that the loss covers, times the root of the weight.

        The mean of the squared difference of two of these is the weighted mean over the frames behind the known ones.
        """
        flow = flow[:, :, self.known_frames :]
        return flow if self.weight is None else flow.float() * self.weight.sqrt()


# ---------------------------------------------------------------------------------------------------------------- units

TILES = ("tiled", "tile_size", "tile_stride")


class CallInputsUnit(host.PipelineUnit):
    """Moves the arguments that only `OmniAvatarPipeline.__call__` knows into the host's inputs. First of all units."""

    def __init__(self) -> None:
        host.declare_unit(self, output_params=(), take_over=True)

    def process(
        self, pipe: OmniAvatarPipeline, inputs_shared: Inputs, inputs_posi: Inputs, inputs_nega: Inputs
    ) -> tuple[Inputs, Inputs, Inputs]:
        shared, positive, negative = pipe.take_call_inputs()
        return {**inputs_shared, **shared}, {**inputs_posi, **positive}, {**inputs_nega, **negative}


class PromptUnit(host.PromptEmbedder):
    """The host's text encoding, one text at a time, passed over where the embedding is given (`context`)."""

    def __init__(self) -> None:
        super().__init__()
        for names in (self.input_params_posi, self.input_params_nega):
            names["context"] = "context"

    def process(
        self, pipe: OmniAvatarPipeline, prompt: str | Sequence[str], positive: bool, context: Tensor | None
    ) -> Inputs:
        if context is None:
            texts = [prompt] if isinstance(prompt, str) else prompt
            context = torch.cat([super(PromptUnit, self).process(pipe, text, positive)["context"] for text in texts])
        return {"context": context.to(dtype=pipe.torch_dtype, device=pipe.device)}


class TargetUnit(host.PipelineUnit):
    """Training: the clip's latents, encoded as one, and fresh noise of their shape."""

    def __init__(self) -> None:
        host.declare_unit(
            self,
            input_params=("omni_target_video", "input_latents", "height", "width", *TILES),
            output_params=("input_latents", "noise"),
            onload_model_names=("vae",),
        )

    def process(
        self,
        pipe: OmniAvatarPipeline,
        omni_target_video: Tensor | None,
        input_latents: Tensor | None,
        height: int,
        width: int,
        **tiles: Any,
    ) -> Inputs:
        if not pipe.scheduler.training:
            return {}
        if input_latents is None:
            if omni_target_video is None:
                raise ValueError("A training sample has neither target_video nor input_latents.")
            input_latents = encode_video(pipe, video_tensor(omni_target_video, height, width), **tiles)
        input_latents = input_latents.to(dtype=pipe.torch_dtype, device=pipe.device)
        return {"input_latents": input_latents, "noise": torch.randn_like(input_latents)}


class AudioUnit(host.PipelineUnit):
    """Speech to features, one row per video frame; the negative inputs get zeros.

    In training frame j of a clip hears row j, and the first `leading_audio_rows` rows are zeros; when generating
    they stand in front and the sound starts as many frames later. So a row always sounds while its frame is shown.
    """

    def __init__(self) -> None:
        host.declare_unit(
            self,
            take_over=True,
            input_params=("omni_sound", "omni_waveforms", "omni_drop_audio", "omni_audio_features", "num_frames"),
            output_params=("omni_audio",),
            onload_model_names=("speech_encoder",),
        )

    def process(
        self, pipe: OmniAvatarPipeline, inputs_shared: Inputs, inputs_posi: Inputs, inputs_nega: Inputs
    ) -> tuple[Inputs, Inputs, Inputs]:
        frames, features = inputs_shared["num_frames"], inputs_shared.get("omni_audio_features")
        if features is None and pipe.scheduler.training:
            features = self.encode_clips(
                pipe, inputs_shared["omni_waveforms"], inputs_shared["omni_drop_audio"], frames
            )
        elif features is None:
            features = self.encode(pipe, inputs_shared.get("omni_sound"), frames)
        features = features.reshape(-1, *features.shape[-2:])
        if features.shape[1] != frames:
            raise ValueError(f"There are {features.shape[1]} rows of audio features for {frames} video frames.")
        if pipe.scheduler.training:
            features = F.pad(
                features[:, pipe.conventions.leading_audio_rows :], (0, 0, pipe.conventions.leading_audio_rows, 0)
            )
        features = features.to(dtype=pipe.torch_dtype, device=pipe.device)
        inputs_posi["omni_audio"] = features
        inputs_nega["omni_audio"] = torch.zeros_like(features)
        return inputs_shared, inputs_posi, inputs_nega

    def encode(self, pipe: OmniAvatarPipeline, sound: Sound | None, frames: int) -> Tensor:
        """The features of the first `frames` frames of a video to this sound, [frames, C], float32."""
        if sound is None:
            raise ValueError("OmniAvatar needs a sound: give input_audio= (or audio_features=).")
        waveform = speech_waveform(sound)
        leading = pipe.conventions.leading_audio_rows
        taken = frames - leading
        rows = pipe.encode_speech(waveform, max(audio_rows(len(waveform)), taken))[:taken]
        return torch.cat([rows.new_zeros(leading, rows.shape[1]), rows])

    def encode_clips(
        self, pipe: OmniAvatarPipeline, waveforms: Sequence[Tensor], silent: Tensor, frames: int
    ) -> Tensor:
        """The features of training clips, [B, frames, C]: of the whole clip's sound, cut; or of a silent waveform."""
        features = []
        for waveform, drop in zip(waveforms, silent.tolist(), strict=True):
            heard = torch.zeros(frames * SAMPLES_PER_FRAME) if drop else waveform
            features.append(pipe.encode_speech(heard, max(audio_rows(len(heard)), frames))[:frames])
        return torch.stack(features)


class ReferenceUnit(host.PipelineUnit):
    """The identity image, encoded alone. In training it is a tensor [B, 3, 1, H, W]."""

    def __init__(self) -> None:
        host.declare_unit(
            self,
            input_params=("input_image", "omni_reference_latents", "omni_source_video", "height", "width", *TILES),
            output_params=("omni_reference_latents",),
            onload_model_names=("vae",),
        )

    def process(
        self,
        pipe: OmniAvatarPipeline,
        input_image: ImageSource | Tensor | None,
        omni_reference_latents: Tensor | None,
        omni_source_video: VideoSource | None,
        height: int,
        width: int,
        **tiles: Any,
    ) -> Inputs:
        if omni_reference_latents is not None:
            return {}
        if isinstance(input_image, Tensor):
            pixels = video_tensor(input_image, height, width)
        elif input_image is not None:
            pixels = image_tensor(input_image, height, width).unsqueeze(2)
        elif omni_source_video is not None:
            pixels = video_tensor(omni_source_video[:1], height, width)
        else:
            raise ValueError("OmniAvatar needs a portrait: give input_image=.")
        return {"omni_reference_latents": encode_video(pipe, pixels, **tiles)}


class MaskedVideoUnit(host.PipelineUnit):
    """V2V: the source video with its mouth greyed out, and the mask. In place of frame 0 stands the known one, if
    any.
    """

    def __init__(self) -> None:
        host.declare_unit(
            self,
            input_params=(
                "omni_source_video",
                "omni_mouth_mask",
                "omni_prefix_video",
                "omni_masked_latents",
                "omni_mouth_mask_latents",
                "num_frames",
                "height",
                "width",
                *TILES,
            ),
            output_params=("omni_masked_latents", "omni_mouth_mask_latents"),
            onload_model_names=("vae",),
        )

    def process(
        self,
        pipe: OmniAvatarPipeline,
        omni_source_video: VideoSource | None,
        omni_mouth_mask: MaskSource | None,
        omni_prefix_video: Tensor | None,
        omni_masked_latents: Tensor | None,
        omni_mouth_mask_latents: Tensor | None,
        num_frames: int,
        height: int,
        width: int,
        **tiles: Any,
    ) -> Inputs:
        if not pipe.dit.config.has_masked_video:
            return {}
        outputs: Inputs = {}
        mask = load_mouth_mask(omni_mouth_mask, height, width)
        if omni_mouth_mask_latents is None:
            outputs["omni_mouth_mask_latents"] = mask_to_latents(mask, latent_frames(num_frames))
        if omni_masked_latents is None:
            video = self.source(omni_source_video, num_frames, height, width)  # in training, the target itself
            known = 1 if pipe.conventions.first_frame == "known" else 0
            if omni_prefix_video is not None and known:
                video[:, :, :1] = omni_prefix_video[None, :, :1].to(video)
            outputs["omni_masked_latents"] = encode_video(pipe, mask_video(video, mask, known), **tiles)
        return outputs

    def source(self, video: VideoSource | None, num_frames: int, height: int, width: int) -> Tensor:
        """The source video's frames, exactly as many as the clip has."""
        if video is None:
            raise ValueError("This is a V2V checkpoint, which changes the mouth of a video: give input_video=.")
        frames = video_tensor(video, height, width)
        if frames.shape[2] < num_frames:
            raise ValueError(f"The source video has {frames.shape[2]} frames, the clip {num_frames}.")
        return frames[:, :, :num_frames].clone()


class ReferenceSequenceUnit(host.PipelineUnit):
    """65 channels: a second clip of the same person that is no part of the target."""

    def __init__(self) -> None:
        host.declare_unit(
            self,
            input_params=(
                "omni_reference_video",
                "omni_reference_sequence_latents",
                "num_frames",
                "height",
                "width",
                *TILES,
            ),
            output_params=("omni_reference_sequence_latents",),
            onload_model_names=("vae",),
        )

    def process(
        self,
        pipe: OmniAvatarPipeline,
        omni_reference_video: VideoSource | None,
        omni_reference_sequence_latents: Tensor | None,
        num_frames: int,
        height: int,
        width: int,
        **tiles: Any,
    ) -> Inputs:
        if not pipe.dit.config.has_reference_sequence or omni_reference_sequence_latents is not None:
            return {}
        if omni_reference_video is None:
            raise ValueError("This checkpoint sees a second clip of the person: give reference_video=.")
        frames = video_tensor(omni_reference_video, height, width)
        if frames.shape[2] < num_frames:
            raise ValueError(f"reference_video has {frames.shape[2]} frames, wanted {num_frames}.")
        return {"omni_reference_sequence_latents": encode_video(pipe, frames[:, :, :num_frames], **tiles)}


class PrefixUnit(host.PipelineUnit):
    """The latents that are known at the start and stay so at every step.

    Generating: the encoded prefix frames if there are some. Else I2V has the reference image as its first frame, and
    V2V the source's first frame, unless its checkpoint masks that too. Training: the clip's own first latents, or noise
    where the recipe drops them.
    """

    def __init__(self) -> None:
        host.declare_unit(
            self,
            input_params=(
                "omni_prefix_video",
                "omni_prefix_frames",
                "omni_drop_prefix",
                "omni_reference_latents",
                "omni_masked_latents",
                "input_latents",
                *TILES,
            ),
            output_params=("omni_prefix_latents",),
            onload_model_names=("vae",),
        )

    def process(
        self,
        pipe: OmniAvatarPipeline,
        omni_prefix_video: Tensor | None,
        omni_prefix_frames: int | None,
        omni_drop_prefix: Tensor | None,
        omni_reference_latents: Tensor,
        omni_masked_latents: Tensor | None,
        input_latents: Tensor | None,
        **tiles: Any,
    ) -> Inputs:
        if pipe.scheduler.training:
            return self.of_clip(input_latents, omni_prefix_frames, omni_drop_prefix)
        if omni_prefix_video is not None:
            latent_frames(omni_prefix_video.shape[1])  # 4n+1 frames, or an error
            return {"omni_prefix_latents": encode_video(pipe, omni_prefix_video[None], **tiles)}
        if omni_masked_latents is None:
            return {"omni_prefix_latents": omni_reference_latents}
        if pipe.conventions.first_frame == "known":
            return {"omni_prefix_latents": omni_masked_latents[:, :, :1]}
        return {}

    def of_clip(self, latents: Tensor | None, prefix_frames: int | None, dropped: Tensor | None) -> Inputs:
        """The first latents of the training clips [B, 16, T, h, w], noise in those that are dropped [B]."""
        if not prefix_frames:
            return {}
        assert latents is not None and dropped is not None
        prefix = latents[:, :, : latent_frames(prefix_frames)]
        noise = torch.randn_like(prefix)
        return {"omni_prefix_latents": torch.where(dropped.to(prefix.device).view(-1, 1, 1, 1, 1), noise, prefix)}


class ConditionUnit(host.PipelineUnit):
    """Puts the conditioning channels in their order: reference, mask, masked video, reference sequence."""

    def __init__(self) -> None:
        host.declare_unit(
            self,
            input_params=(
                "noise",
                "omni_reference_latents",
                "omni_prefix_latents",
                "omni_mouth_mask_latents",
                "omni_masked_latents",
                "omni_reference_sequence_latents",
            ),
            output_params=("omni_y",),
        )

    def process(
        self,
        pipe: OmniAvatarPipeline,
        noise: Tensor,
        omni_reference_latents: Tensor,
        omni_prefix_latents: Tensor | None,
        omni_mouth_mask_latents: Tensor | None,
        omni_masked_latents: Tensor | None,
        omni_reference_sequence_latents: Tensor | None,
    ) -> Inputs:
        reference = omni_reference_latents.to(noise)
        batch, _, frames, height, width = len(reference), *noise.shape[1:]
        if omni_mouth_mask_latents is None:
            mask = noise.new_ones(batch, 1, frames, height, width)
        else:
            mask = omni_mouth_mask_latents.to(noise).expand(batch, -1, -1, -1, -1).clone()
        if omni_prefix_latents is not None:
            mask[:, :, : omni_prefix_latents.shape[2]] = 0
        parts = [reference.expand(-1, -1, frames, -1, -1), mask, omni_masked_latents, omni_reference_sequence_latents]
        return {"omni_y": torch.cat([part.to(noise) for part in parts if part is not None], dim=1)}


class GuidanceUnit(host.PipelineUnit):
    """Three passes where the audio's guidance differs from the text's; with a text guidance of 1 there is one pass."""

    def __init__(self) -> None:
        host.declare_unit(
            self,
            take_over=True,
            input_params=("cfg_scale", "omni_audio_cfg_scale", "tea_cache"),
            output_params=("omni_guidance",),
        )

    def process(
        self, pipe: OmniAvatarPipeline, inputs_shared: Inputs, inputs_posi: Inputs, inputs_nega: Inputs
    ) -> tuple[Inputs, Inputs, Inputs]:
        text_scale, audio_scale = inputs_shared["cfg_scale"], inputs_shared.get("omni_audio_cfg_scale")
        if audio_scale is None or audio_scale == text_scale or text_scale == 1.0:
            return inputs_shared, inputs_posi, inputs_nega
        cache = inputs_posi.get("tea_cache")
        if cache is not None:
            cache = host.TeaCache(cache.num_inference_steps, cache.rel_l1_thresh, inputs_posi["tea_cache_model_id"])
        guidance = AudioGuidance(text_scale, audio_scale, cache)
        inputs_posi["omni_guidance"] = guidance
        if text_scale == 0:
            inputs_nega["omni_guidance"] = guidance.negative
        return inputs_shared, inputs_posi, inputs_nega


class RecordUnit(host.PipelineUnit):
    """Training: what the loss covers, and a place for what the losses beside the host's need."""

    def __init__(self) -> None:
        host.declare_unit(
            self,
            input_params=("omni_prefix_latents", "omni_mouth_mask_latents", "omni_mouth_weight"),
            output_params=("omni_record",),
        )

    def process(
        self,
        pipe: OmniAvatarPipeline,
        omni_prefix_latents: Tensor | None,
        omni_mouth_mask_latents: Tensor | None,
        omni_mouth_weight: float | None,
    ) -> Inputs:
        if not pipe.scheduler.training:
            return {}
        known = 0 if omni_prefix_latents is None else omni_prefix_latents.shape[2]
        weight = None
        if omni_mouth_weight is not None and omni_mouth_mask_latents is not None:
            inside = omni_mouth_mask_latents[:, :, known:].to(device=pipe.device, dtype=torch.float32)
            weight = 1 + (omni_mouth_weight - 1) * inside
            weight = weight / weight.mean(dim=(1, 2, 3, 4), keepdim=True)
        return {"omni_record": StepRecord(known_frames=known, weight=weight)}


class PrefixPostUnit(host.PipelineUnit):
    """Puts the known latents back after the last step."""

    def __init__(self) -> None:
        host.declare_unit(self, input_params=("latents", "omni_prefix_latents"), output_params=("latents",))

    def process(self, pipe: OmniAvatarPipeline, latents: Tensor, omni_prefix_latents: Tensor | None) -> Inputs:
        if omni_prefix_latents is None:
            return {}
        prefix = omni_prefix_latents.to(latents)
        return {"latents": torch.cat([prefix, latents[:, :, prefix.shape[2] :]], dim=2)}


def units() -> list[host.PipelineUnit]:
    """OmniAvatar's units in the order in which they run after the host's."""
    return [
        TargetUnit(),
        AudioUnit(),
        ReferenceUnit(),
        MaskedVideoUnit(),
        ReferenceSequenceUnit(),
        PrefixUnit(),
        ConditionUnit(),
        GuidanceUnit(),
        RecordUnit(),
    ]
