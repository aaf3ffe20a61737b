"""The networks that figures need: their files, loaded when they are first used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..losses.lpips import SOURCE as VGG_SOURCE
from ..losses.lpips import load_lpips
from ..losses.syncnet import SOURCE as STABLE_SOURCE
from ..losses.syncnet import StableSyncNet, load_syncnet
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

    def load(self, group: str) -> None:
        """Load what a group of figures needs; raises as its network's property."""
        if group in _NETWORKS:
            getattr(self, _NETWORKS[group])

    def file(self, group: str) -> str | Path | None:
        """The file of weights that a group of figures needs; None if it needs none, or none is given."""
        return getattr(self, _FILES[group]) if group in _FILES else None

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
}
_FILES = {
    "sync": "syncnet_path",
    "stable_sync": "stable_syncnet_path",
    "lpips": "vgg_path",
    "fid": "inception_path",
    "fvd": "fvd_path",
}


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
    }
    flag = (flags or {}).get(_FILES[group], f"--{_FILES[group]}")
    return f"needs {flag}: {sources[group]}"
