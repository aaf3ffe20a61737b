"""The networks that figures need: their files, loaded when they are first used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..losses.lpips import SOURCE as VGG_SOURCE
from ..losses.lpips import load_lpips
from ..losses.syncnet import SOURCE as STABLE_SOURCE
from ..losses.syncnet import StableSyncNet, load_syncnet
from ..losses.trepa import SOURCE as VIDEOMAE_SOURCE
from ..system.digests import file_sha256
from .distribution import I3D_URL, INCEPTION_URL, load_fvd, load_inception
from .identity import INSTALL, FaceEmbedder
from .syncnet import SOURCE, SyncNet


@dataclass(kw_only=True)
class Networks:
    """Files of weights, and the networks loaded from them when they are first needed."""

    device: str = "cpu"
    syncnet_path: str | Path | None = None
    """`syncnet_v2.model`."""
    stable_syncnet_path: str | Path | None = None
    """`stable_syncnet.pt` of LatentSync."""
    vgg_path: str | Path | None = None
    """torchvision's `vgg16-397923af.pth`."""
    inception_path: str | Path | None = None
    """Inception's weights for FID, `weights-inception-2015-12-05-6726825d.pth`."""
    fvd_path: str | Path | None = None
    """I3D's weights for FVD, `i3d_pretrained_400.pt`."""
    videomae_path: str | Path | None = None
    """VideoMAE's weights for FVD, `vit_g_hybrid_pt_1200e_ssv2_ft.pth`."""
    _loaded: dict[str, Any] = field(default_factory=dict)

    @property
    def syncnet(self) -> SyncNet:
        """Raises as `SyncNet.load`."""
        return self._once("syncnet", lambda: SyncNet.load(self.syncnet_path or "", self.device))

    @property
    def stable_syncnet(self) -> StableSyncNet:
        """Raises as `load_syncnet`."""
        return self._once("stable", lambda: load_syncnet(self.stable_syncnet_path or "", self.device, torch.float32))

    @property
    def lpips(self) -> torch.nn.Module:
        """Raises as `load_lpips`."""
        return self._once("lpips", lambda: load_lpips(self.vgg_path, self.device))

    @property
    def embedder(self) -> FaceEmbedder:
        """Raises as `FaceEmbedder`."""
        return self._once("embedder", FaceEmbedder)

    @property
    def inception(self) -> Any:
        """Raises as `load_inception`."""
        return self._once("inception", lambda: load_inception(self.inception_path or "", self.device))

    @property
    def fvd(self) -> Any:
        """Raises as `load_fvd`."""
        return self._once("fvd", lambda: load_fvd(self.fvd_path or "", self.device))

    @property
    def fvd_videomae(self) -> Any:
        """Raises as `load_fvd`."""
        return self._once("videomae", lambda: load_fvd(self.videomae_path or "", self.device, "videomae"))

    def load(self, group: str) -> None:
        """Load what a group of figures needs; raises as its network's property."""
        if group in _NETWORKS:
            getattr(self, _NETWORKS[group])

    def file(self, group: str) -> str | Path | None:
        """The file of weights that a group of figures needs; None if it needs none, or none is given."""
        return getattr(self, _FILES[group]) if group in _FILES else None

    def digests(self, groups: Sequence[str]) -> dict[str, str]:
        """SHA-256 of the files of weights that groups of figures need."""
        return {name: file_sha256(path) for name in groups if (path := self.file(name))}

    def doubts(self, digests: Mapping[str, str]) -> list[str]:
        """A sentence for each file of weights that is not the published one, by `digests`."""
        return [
            f"{name}: {self.file(name)} is not the published file: its SHA-256 begins with {digest[:8]}, not with "
            f"{PUBLISHED[name][:8]}; compare these figures with those of the same file alone"
            for name, digest in digests.items()
            if digest != PUBLISHED.get(name, digest)
        ]

    def fresh(self) -> Networks:
        """The same files with nothing loaded, for another process."""
        return replace(self, _loaded={})

    def _once(self, name: str, load: Callable[[], Any]) -> Any:
        if name not in self._loaded:
            self._loaded[name] = load()
        return self._loaded[name]


_NETWORKS = {
    "sync": "syncnet",
    "stable_sync": "stable_syncnet",
    "lpips": "lpips",
    "identity": "embedder",
    "fid": "inception",
    "fvd": "fvd",
    "fvd_videomae": "fvd_videomae",
}
_FILES = {
    "sync": "syncnet_path",
    "stable_sync": "stable_syncnet_path",
    "lpips": "vgg_path",
    "fid": "inception_path",
    "fvd": "fvd_path",
    "fvd_videomae": "videomae_path",
}
PUBLISHED = {
    "sync": "961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442",
    "lpips": "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    "fid": "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "fvd_videomae": "5a210a92f035dff30c53b46157b612e7a1a5d3c99700e1b2d71da5c399ca7e70",
}
"""Group -> SHA-256 of the file of weights that everybody measures with. For torchvision's and torch-fidelity's, the
files' own names hold the first digits; huggingface.co shows SyncNet's and VideoMAE's beside chunyu-li/LatentSync's
files. No trustworthy one is known of StableSyncNet and I3D."""


def missing_for(group: str, networks: Networks, flags: Mapping[str, str] | None = None) -> str | None:
    """Why figures of a group cannot be had, and the command or flag that brings what is missing; None if they can.

    Args:
        group: its name.
        networks: where weights lie.
        flags: field of `Networks` -> the flag that sets it, where that has another name.
    """
    packages = {
        "lpips": ("lpips", "torchvision"),
        "identity": ("dlib", "face_recognition_models"),
        "fid": ("torch_fidelity",),
        "fvd": ("cdfvd",),
        "fvd_videomae": ("cdfvd",),
    }
    absent = [name for name in packages.get(group, ()) if find_spec(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed: {INSTALL}"
    if group not in _FILES or networks.file(group) is not None:
        return None
    sources = {
        "sync": SOURCE,
        "stable_sync": STABLE_SOURCE,
        "lpips": VGG_SOURCE,
        "fid": f"get {INCEPTION_URL}",
        "fvd": f"get {I3D_URL}",
        "fvd_videomae": VIDEOMAE_SOURCE,
    }
    flag = (flags or {}).get(_FILES[group], f"--{_FILES[group]}")
    return f"needs {flag}: {sources[group]}"
