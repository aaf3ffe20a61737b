"""One chunk after the other out of the pipeline, all with the same prompt, size and settings."""

from __future__ import annotations

import logging
from typing import Any

from PIL import Image
from torch import Tensor

from ..media.images import Size
from ..model.sampling import SAMPLERS, TRAIN_TIMESTEPS, Sampling
from . import colours
from .pipeline import OmniAvatarPipeline, OnFrames
from .preview import LatentColours, OnPreview, Preview, write_sheet
from .request import Settings

logger = logging.getLogger(__name__)


class ChunkMaker:
    """Makes the chunks of a video; the texts are encoded once.

    Args:
        pipe: the pipeline.
        request: what is wanted.
        size: height and width of the chunks.
        chunks: of the whole video.
        on_preview: gets what each step has come to.
    """

    def __init__(
        self, pipe: OmniAvatarPipeline, request: Settings, size: Size, chunks: int, on_preview: OnPreview | None = None
    ) -> None:
        self.pipe, self.request, self.size = pipe, request, size
        self._chunks, self._begun = chunks, 0
        self.sampling: Sampling = request.sampling(pipe.conventions.sampling)
        if request.sampler is not None:
            logger.info(
                "Sampler %s (%s): timesteps %s.",
                request.sampler,
                SAMPLERS[request.sampler].source,
                ", ".join(f"{TRAIN_TIMESTEPS * level:.5g}" for level in self.sampling.sigmas),
            )
        self._prompt = pipe.encode_prompt(request.prompt)
        guided = self.sampling.cfg_scale != 1.0
        self._negative_prompt = pipe.encode_prompt(self.sampling.negative_prompt) if guided else None
        self._on_preview = on_preview
        self._colours: LatentColours | None = None
        if on_preview is not None or request.preview is not None:
            pipe.load_models_to_device(["vae"])
            self._colours = LatentColours.of_vae(pipe.vae, pipe.device, pipe.torch_dtype)

    def make(
        self,
        index: int,
        features: Tensor,
        *,
        image: Image.Image | None,
        video: Tensor | None,
        original: Tensor,
        reference_sequence: Tensor | None,
        carried: Tensor | None,
        progress_bar_cmd: Any,
        on_frames: OnFrames | None = None,
    ) -> Tensor:
        """A chunk, [3, L, H, W] in [-1, 1].

        Args:
            index: number of the chunk, which is added to the seed.
            features: [L, C], one row a frame.
            image: the portrait; None for the first frame of `video`.
            video: V2V: the source's frames, as the pipeline's `input_video`.
            original: what the chunk shows, [3, 1 or L, H, W] in [-1, 1], whose colours it gets.
            reference_sequence: 65 channels: the second clip.
            carried: [3, P, H, W], frames with which it must begin.
            progress_bar_cmd: as the host takes it.
            on_frames: as the pipeline takes it; where colours are matched, which takes all frames, it gets all at once.
        """
        pipe, sampling, request = self.pipe, self.sampling, self.request
        self._begun += 1
        frames = pipe(
            input_image=image,
            audio_features=features,
            input_video=video,
            mouth_mask=request.mouth_mask,
            reference_video=reference_sequence,
            prefix_video=carried,
            height=self.size[0],
            width=self.size[1],
            num_frames=len(features),
            num_inference_steps=sampling.steps,
            timesteps=sampling.timesteps,
            sigma_shift=sampling.sigma_shift,
            solver=sampling.solver,
            cfg_scale=sampling.cfg_scale,
            audio_cfg_scale=sampling.audio_scale,
            apg_eta=sampling.apg_eta,
            guidance_rescale=sampling.guidance_rescale,
            guidance_from=sampling.guidance_from,
            guidance_to=sampling.guidance_to,
            seed=request.seed + index,
            tiled=request.tiled,
            tea_cache_l1_thresh=request.tea_cache_l1_thresh,
            tea_cache_model_id=request.tea_cache_model_id,
            output_type="floatpoint",
            on_step=self._show if self._colours and pipe.is_first_process else None,
            on_frames=None if sampling.match_colours else on_frames,
            progress_bar_cmd=progress_bar_cmd,
            prompt_embeds=self._prompt,
            negative_prompt_embeds=self._negative_prompt,
        ).float()
        if sampling.match_colours:
            frames = colours.match_colours(frames, original)
            if on_frames is not None:
                on_frames(frames)
        return frames

    def _show(self, step: int, latents: Tensor) -> None:
        """Show the clean latents [16, T, h, w] that a step predicts."""
        assert self._colours is not None
        pictures = self._colours.pictures(latents)
        if self.request.preview is not None:
            write_sheet(self.request.preview, pictures)
        if self._on_preview is not None:
            self._on_preview(Preview(self._begun, self._chunks, step, self.sampling.steps, pictures))

    def carry(self, frames: Tensor, overlap: int) -> Tensor | None:
        """The last frames of a chunk, with which the next one begins; None where the model knows no such start."""
        return frames[:, frames.shape[1] - overlap :].clamp(-1, 1) if self.pipe.conventions.prefix_frames else None
