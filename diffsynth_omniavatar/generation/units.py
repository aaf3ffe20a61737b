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
| KnownUnit | known latents | the scheduler's `known`, for previews |
| GuidanceUnit | the guidance of `Sampling` | `omni_guidance` |
| RecordUnit | training: known latents, mouth mask | `omni_record`: what the loss covers, and what it saw |
| PrefixPostUnit | finished latents | the same with the known latents put back |

Latents that are already there (from a cache) are used as they are, and the network that makes them is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import host
from ..media.images import ImageSource
from ..media.sound import Sound, speech_waveform
from ..media.timeline import SAMPLES_PER_FRAME, audio_rows, latent_frames
from ..model.config import Conventions
from ..model.dit import OmniAvatarDiT
from .guidance import Guidance
from .masks import MaskSource, load_mouth_mask, mask_to_latents, mask_video
from .pixels import VideoSource, encode_video, image_tensor, video_tensor
from .record import StepRecord
from .scheduler import StepScheduler

Inputs = dict[str, Any]


class UnitPipeline(Protocol):
    """What the units use of `OmniAvatarPipeline`."""

    dit: OmniAvatarDiT
    conventions: Conventions
    scheduler: Any
    torch_dtype: torch.dtype
    device: Any

    def take_call_inputs(self) -> tuple[Inputs, Inputs, Inputs]: ...

    def encode_speech(self, waveform: Tensor, rows: int) -> Tensor: ...


TILES = ("tiled", "tile_size", "tile_stride")


class CallInputsUnit(host.PipelineUnit):
    """Moves the arguments that only `OmniAvatarPipeline.__call__` knows into the host's inputs. First of all units."""

    def __init__(self) -> None:
        host.declare_unit(self, output_params=(), take_over=True)

    def process(
        self, pipe: UnitPipeline, inputs_shared: Inputs, inputs_posi: Inputs, inputs_nega: Inputs
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
        self, pipe: UnitPipeline, prompt: str | Sequence[str], positive: bool, context: Tensor | None
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
        pipe: UnitPipeline,
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
        self, pipe: UnitPipeline, inputs_shared: Inputs, inputs_posi: Inputs, inputs_nega: Inputs
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

    def encode(self, pipe: UnitPipeline, sound: Sound | None, frames: int) -> Tensor:
        """The features of the first `frames` frames of a video to this sound, [frames, C], float32."""
        if sound is None:
            raise ValueError("OmniAvatar needs a sound: give input_audio= (or audio_features=).")
        waveform = speech_waveform(sound)
        leading = pipe.conventions.leading_audio_rows
        taken = frames - leading
        rows = pipe.encode_speech(waveform, max(audio_rows(len(waveform)), taken))[:taken]
        return torch.cat([rows.new_zeros(leading, rows.shape[1]), rows])

    def encode_clips(self, pipe: UnitPipeline, waveforms: Sequence[Tensor], silent: Tensor, frames: int) -> Tensor:
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
        pipe: UnitPipeline,
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
        pipe: UnitPipeline,
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
        pipe: UnitPipeline,
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
        pipe: UnitPipeline,
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
        pipe: UnitPipeline,
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


class KnownUnit(host.PipelineUnit):
    """Generating: tells the scheduler which latents are known, so that previews show them."""

    def __init__(self) -> None:
        host.declare_unit(self, input_params=("omni_prefix_latents",), output_params=())

    def process(self, pipe: UnitPipeline, omni_prefix_latents: Tensor | None) -> Inputs:
        if isinstance(pipe.scheduler, StepScheduler):
            pipe.scheduler.known = omni_prefix_latents
        return {}


class GuidanceUnit(host.PipelineUnit):
    """Guidance beyond the host's: the audio's own, rescaled, or in a part of the steps."""

    def __init__(self) -> None:
        host.declare_unit(
            self,
            take_over=True,
            input_params=("omni_sampling", "omni_prefix_latents", "omni_passes", "tea_cache"),
            output_params=("omni_guidance",),
        )

    def process(
        self, pipe: UnitPipeline, inputs_shared: Inputs, inputs_posi: Inputs, inputs_nega: Inputs
    ) -> tuple[Inputs, Inputs, Inputs]:
        sampling = inputs_shared.get("omni_sampling")
        passes = inputs_shared.get("omni_passes")
        if sampling is None or (passes is None and sampling.has_hosts_guidance):
            return inputs_shared, inputs_posi, inputs_nega
        cache = inputs_posi.get("tea_cache")
        if cache is not None:
            cache = host.TeaCache(cache.num_inference_steps, cache.rel_l1_thresh, inputs_posi["tea_cache_model_id"])
        prefix = inputs_shared.get("omni_prefix_latents")
        guidance = Guidance(
            sampling,
            inputs_nega.get("context"),
            (cache, inputs_nega.get("tea_cache")),
            known_frames=0 if prefix is None else prefix.shape[2],
            parallel=passes,
        )
        inputs_posi["omni_guidance"] = guidance
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
        pipe: UnitPipeline,
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

    def process(self, pipe: UnitPipeline, latents: Tensor, omni_prefix_latents: Tensor | None) -> Inputs:
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
        KnownUnit(),
        GuidanceUnit(),
        RecordUnit(),
    ]
