"""The figures of one clip, in groups: each watches the clip's windows, and tells values and curves at the end.

    for group in groups: group.watch(window)
    measured = [group.result() for group in groups]

A curve has a number for each frame, at 25 per second; NaN where there is none. A value is a number for the clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..generation.masks import draw_mouth_mask
from ..losses.mel import MEL_COLUMNS, mel_spectrogram, mel_start, mel_window
from ..losses.mel import WINDOW as SYNC_WINDOW
from ..losses.sync import PICTURE_SIZE as STABLE_SIZE
from ..losses.sync import SyncLoss
from ..media.faces.align import align
from ..media.faces.paste import paste
from ..media.timeline import FRAME_RATE
from . import heard, lips, motion, stability
from .clip import FACE_SIZE, Clip, Window
from .container import file_facts
from .crops import SYNC_FILL, cut_squares, sync_boxes
from .identity import csim
from .networks import Networks
from .picture import Weights, frame_psnr, frame_ssim
from .sync import best_lag, correlation
from .syncnet import LARGEST_SHIFT, PICTURE_SIZE
from .syncnet import WINDOW as LIP_WINDOW

NO_REFERENCE, NO_SOUND, NO_FACE = "no reference is given", "there is no sound", "there is no face in any frame"
NO_FACE_OF_REFERENCE = f"{NO_FACE} of the reference"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a group says of a clip."""

    values: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, np.ndarray] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    """Figures that this clip does not have, and why."""


class Group:
    """Figures that are measured together. A subclass says what it needs, watches windows and tells the result."""

    name: str
    """By which it is asked for."""
    about: str
    """What it measures, for the help text."""
    needs: tuple[str, ...] = ()
    """Of "reference", "sound", "face" (of the video) and "square" (of the face: the reference's, if there is one):
    without them the clip has no such figures."""

    def __init__(self, clip: Clip, networks: Networks) -> None:
        self.clip, self.networks = clip, networks

    def watch(self, window: Window) -> None:
        """Take the next frames."""

    def result(self) -> Measured:
        """The figures, once all frames were watched."""
        raise NotImplementedError


class FileGroup(Group):
    """What the file itself says."""

    name, about = "file", "duration, frame rate and place of the sound, of the file itself"

    def result(self) -> Measured:
        return Measured(values=file_facts(self.clip.files.generated))


class LipsGroup(Group):
    """How the mouth moves, against the sound and against the reference's mouth."""

    name, about = (
        "lips",
        "openness and width of the mouth, how well the sound tells them, and lag; LMD to the reference",
    )
    needs = ("face",)

    def result(self) -> Measured:
        clip = self.clip
        curves = lips.mouth_curves(clip.faces)
        values = {"mouth_openness": _mean(curves["openness"]), "mouth_movement": _deviation(curves["openness"])}
        missing: dict[str, str] = {}
        if clip.waveform is not None:
            curves["loudness"] = lips.sound_envelope(clip.waveform, clip.frames)
            values["openness_heard_r"] = heard.heard_correlation(curves["openness"], clip.waveform)
            values["openness_heard_lag"] = heard.heard_lag(curves["openness"], clip.waveform)
        else:
            missing |= dict.fromkeys(("openness_heard_r", "openness_heard_lag"), NO_SOUND)
        if clip.reference_faces is not None and any(face is not None for face in clip.reference_faces):
            truth = lips.mouth_curves(clip.reference_faces)
            known = {name: np.where(np.isfinite(curve), curve, _mean(curve)) for name, curve in truth.items()}
            values |= {f"{name}_r": correlation(curves[name], curve) for name, curve in known.items()}
            values["openness_lag"] = float(best_lag(curves["openness"], known["openness"]))
            curves |= {f"reference_{name}": curve for name, curve in truth.items()}
            curves["lmd"] = lips.landmark_distance(clip.faces, clip.reference_faces)
            values["lmd"] = _mean(curves["lmd"])
        else:
            why = NO_REFERENCE if clip.reference_faces is None else NO_FACE_OF_REFERENCE
            missing |= dict.fromkeys(("openness_r", "width_r", "openness_lag", "lmd"), why)
        return Measured(values=values, curves=curves, missing=missing)


class MotionGroup(Group):
    """How head and eyes move."""

    name, about = "motion", "blinks per minute, range and speed of the head's turns"
    needs = ("face",)

    def result(self) -> Measured:
        aspect = motion.eye_aspect(self.clip.faces)
        angles = motion.head_angles(self.clip.faces)
        speed = motion.head_speed(self.clip.faces)
        return Measured(
            values={
                "blinks_per_minute": motion.blink_rate(aspect),
                "head_range": float(np.linalg.norm([_deviation(column) for column in angles.T])),
                "head_speed": _mean(speed),
                "face_share": float(np.mean([face is not None for face in self.clip.faces])),
            },
            curves={"eye_aspect": aspect, "yaw": angles[:, 0], "pitch": angles[:, 1], "roll": angles[:, 2]},
        )


class StabilityGroup(Group):
    """What changes that should not."""

    name, about = "stability", "sharpness and its loss, drift of the background's colours, flicker, frozen frames"

    def __init__(self, clip: Clip, networks: Networks) -> None:
        super().__init__(clip, networks)
        self._curves: dict[str, list[Tensor]] = {"sharpness": [], "brightness": [], "change": [], "background": []}
        self._last: Tensor | None = None

    def watch(self, window: Window) -> None:
        frames = window.frames.to(self.networks.device)
        luma = stability.luma(frames)
        self._curves["sharpness"].append(stability.sharpness(luma))
        self._curves["brightness"].append(luma.mean(dim=(1, 2)))
        self._curves["change"].append(stability.change(frames, self._last))
        self._curves["background"].append(stability.border_colours(frames))
        self._last = frames[-1]

    def result(self) -> Measured:
        curves = {name: torch.cat(parts).double().cpu().numpy() for name, parts in self._curves.items()}
        background = curves.pop("background")
        drift = np.abs(background - background[:FRAME_RATE].mean(axis=0)).max(axis=1)
        return Measured(
            values={
                "sharpness": _mean(curves["sharpness"]),
                "sharpness_late": stability.late_change(curves["sharpness"], FRAME_RATE),
                "colour_drift": _mean(drift[-FRAME_RATE:]),
                "flicker": stability.flicker(curves["brightness"]),
                "frozen_share": stability.frozen_share(curves["change"]),
            },
            curves=curves | {"colour_drift": drift},
        )


class PictureGroup(Group):
    """How near each frame comes to the reference's."""

    name, about = "picture", "PSNR and SSIM to the reference: whole, face, outside the mouth's mask"
    needs = ("reference",)

    def __init__(self, clip: Clip, networks: Networks) -> None:
        super().__init__(clip, networks)
        self._curves: dict[str, list[Tensor]] = {}
        self._has_face = has_square(clip)

    def watch(self, window: Window) -> None:
        assert window.reference is not None
        device = self.networks.device
        ours, theirs = window.frames.to(device), window.reference.to(device)
        if not self._has_face:
            self._add(("",), ours, theirs, (None,))
            return
        self._add(("", "_outside"), ours, theirs, (None, 1 - _mouth(window, self.clip).to(device)))
        boxes, size = self.clip.boxes[window.places], FACE_SIZE
        self._add(("_face",), cut_squares(ours, boxes, size), cut_squares(theirs, boxes, size), (None,))

    def _add(self, where: Sequence[str], ours: Tensor, theirs: Tensor, weights: Weights) -> None:
        for name, figure in (("psnr", frame_psnr), ("ssim", frame_ssim)):
            for part, values in zip(where, figure(ours, theirs, weights), strict=True):
                self._curves.setdefault(name + part, []).append(values)

    def result(self) -> Measured:
        parts = () if self._has_face else ("psnr_outside", "psnr_face", "ssim_outside", "ssim_face")
        return _means(self._curves, dict.fromkeys(parts, no_square(self.clip)))


class LpipsGroup(Group):
    """How alike frames and their reference look."""

    name, about = "lpips", "LPIPS (VGG) to the reference: whole and face"
    needs = ("reference",)

    def __init__(self, clip: Clip, networks: Networks) -> None:
        super().__init__(clip, networks)
        self._network = networks.lpips
        self._curves: dict[str, list[Tensor]] = {}
        self._has_face = has_square(clip)

    def watch(self, window: Window) -> None:
        assert window.reference is not None
        pairs = {"lpips": (window.frames, window.reference)}
        if self._has_face:
            boxes, size = self.clip.boxes[window.places], FACE_SIZE
            pairs["lpips_face"] = (
                cut_squares(window.frames, boxes, size),
                cut_squares(window.reference, boxes, size),
            )
        for name, (ours, theirs) in pairs.items():
            distances = [self._distance(a, b) for a, b in zip(ours, theirs, strict=True)]
            self._curves.setdefault(name, []).append(torch.stack(distances))

    @torch.no_grad()
    def _distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        a, b = (frame.to(self.networks.device).permute(2, 0, 1)[None].float() / 127.5 - 1 for frame in (ours, theirs))
        return self._network(a, b).reshape(())

    def result(self) -> Measured:
        return _means(self._curves, {} if self._has_face else {"lpips_face": no_square(self.clip)})


class SyncGroup(Group):
    """SyncNet's figures."""

    name, about = "sync", "Sync-C, Sync-D and offset by SyncNet"
    needs = ("square", "sound")

    def __init__(self, clip: Clip, networks: Networks) -> None:
        super().__init__(clip, networks)
        self._network = networks.syncnet
        self._boxes = sync_boxes(clip.boxes)
        self._rest: Tensor | None = None
        self._features: list[Tensor] = []

    def watch(self, window: Window) -> None:
        crops = cut_squares(window.frames, self._boxes[window.places], PICTURE_SIZE, SYNC_FILL)
        crops = crops if self._rest is None else torch.cat([self._rest, crops])
        self._features.append(self._network.lips(crops))
        self._rest = crops[-(LIP_WINDOW - 1) :]

    def result(self) -> Measured:
        assert self.clip.waveform is not None
        found = self._network.compare(torch.cat(self._features), self.clip.waveform)
        values = {"sync_c": found.confidence, "sync_d": found.distance, "sync_offset": float(found.offset)}
        curve = np.full(self.clip.frames, np.nan)
        curve[: len(found.distances)] = found.distances[:, LARGEST_SHIFT - found.offset]
        return Measured(values=values, curves={"sync_distance": curve})


class StableSyncGroup(Group):
    """StableSyncNet's cosine."""

    name, about = "stable_sync", "cosine of lips and sound by StableSyncNet"
    needs = ("square", "sound")

    def __init__(self, clip: Clip, networks: Networks) -> None:
        super().__init__(clip, networks)
        assert clip.waveform is not None
        self._judge = SyncLoss(networks.stable_syncnet)
        self._mel = mel_spectrogram(torch.from_numpy(clip.waveform))
        self._rest: Tensor | None = None
        self._next = 0
        self._cosines: list[float] = []

    @torch.no_grad()
    def watch(self, window: Window) -> None:
        crops = (
            align(window.frames, self.clip.transforms[window.places], (STABLE_SIZE, STABLE_SIZE)).float() / 127.5 - 1
        )
        self._rest = crops if self._rest is None else torch.cat([self._rest, crops])
        while len(self._rest) >= SYNC_WINDOW:
            if mel_start(self._next) + MEL_COLUMNS <= self._mel.shape[1]:
                frames = self._rest[:SYNC_WINDOW].permute(3, 0, 1, 2)[None].to(self.networks.device)
                cosine = self._judge.window_cosine(frames, mel_window(self._mel, self._next)[None])
                self._cosines.append(float(cosine))
            self._rest, self._next = self._rest[SYNC_WINDOW:], self._next + SYNC_WINDOW

    def result(self) -> Measured:
        curve = np.full(self.clip.frames, np.nan)
        for index, cosine in enumerate(self._cosines):
            curve[index * SYNC_WINDOW : (index + 1) * SYNC_WINDOW] = cosine
        return Measured(values={"stable_sync": _mean(curve)}, curves={"stable_sync": curve})


class IdentityGroup(Group):
    """Is it the same person, to the end?"""

    name, about = "identity", "CSIM to the portrait, and its loss over time"
    needs = ("face",)
    every = 5
    """Frames from one that is looked at to the next."""

    def __init__(self, clip: Clip, networks: Networks) -> None:
        super().__init__(clip, networks)
        self._embedder = networks.embedder
        self._found: dict[int, np.ndarray] = {}

    def watch(self, window: Window) -> None:
        for place, frame in zip(window.places, window.frames, strict=True):
            face = self.clip.faces[place]
            if place % self.every == 0 and face is not None:
                self._found[place] = self._embedder(frame.numpy(), face)

    def result(self) -> Measured:
        reference = self._embedder(*self.clip.portrait)
        curve = np.full(self.clip.frames, np.nan)
        for place, embedding in self._found.items():
            curve[place] = csim(embedding, reference)
        late = stability.late_change(curve, FRAME_RATE)
        return Measured(values={"csim": _mean(curve), "csim_late": late}, curves={"csim": curve})


GROUPS: dict[str, type[Group]] = {
    group.name: group
    for group in (
        LipsGroup,
        MotionGroup,
        StabilityGroup,
        PictureGroup,
        LpipsGroup,
        SyncGroup,
        StableSyncGroup,
        IdentityGroup,
        FileGroup,
    )
}
"""All groups by name."""


def has_square(clip: Clip) -> bool:
    """Whether there is a face by which both videos can be cut."""
    return any(face is not None for face in clip.framing_faces)


def no_square(clip: Clip) -> str:
    """Why a clip has no `has_square`."""
    return NO_FACE if clip.files.reference is None else NO_FACE_OF_REFERENCE


def _mouth(window: Window, clip: Clip) -> Tensor:
    """The mouth's mask in the frames: float32 [n, H, W], 1 inside."""
    mask = 1 - draw_mouth_mask(FACE_SIZE)
    white = torch.full((len(window.frames), *mask.shape, 3), 255, dtype=torch.uint8)
    shown = paste(torch.zeros_like(window.frames), white, clip.transforms[window.places], mask)
    return shown[..., 0].float() / 255


def _means(parts: Mapping[str, list[Tensor]], missing: Mapping[str, str]) -> Measured:
    curves = {name: torch.cat(part).double().cpu().numpy() for name, part in parts.items()}
    return Measured(values={name: _mean(curve) for name, curve in curves.items()}, curves=curves, missing=missing)


def _mean(curve: np.ndarray) -> float:
    seen = curve[np.isfinite(curve)]
    return float(seen.mean()) if len(seen) else float("nan")


def _deviation(curve: np.ndarray) -> float:
    seen = curve[np.isfinite(curve)]
    return float(seen.std()) if len(seen) else float("nan")
