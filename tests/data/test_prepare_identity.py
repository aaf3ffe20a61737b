"""A clip's face as numbers is that of the person whom it shows."""

from typing import Any

import numpy as np
import pytest
import torch
from prepare_looks import face, track

from diffsynth_omniavatar.data.prepare import clip_identity
from diffsynth_omniavatar.data.prepare.clip_identity import ClipIdentity

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def test_of_several_faces_the_one_of_the_track_is_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = face(50, 48, 40), face(120, 48, 40)
    seen = [[other, own], [other], []]

    class Finder:
        def faces(self, picture: torch.Tensor) -> list[Any]:
            return seen[int(picture[0, 0, 0])]

    monkeypatch.setattr(clip_identity, "FaceFinder", Finder)
    monkeypatch.setattr(clip_identity, "FaceEmbedder", lambda: lambda picture, found: np.array(found.box))
    for number, wanted in ((0, own), (1, None), (2, None)):
        identity = ClipIdentity(track(range(5, 9), 48))
        picture = torch.full((96, 160, 3), number, dtype=torch.uint8)
        for frame in (4, 5):
            identity.add(picture, frame)
        if wanted is None:
            assert identity.fingerprint() == {}
        else:
            box = np.array(wanted.box)
            assert identity.fingerprint()["face"] == pytest.approx(box / np.linalg.norm(box), abs=1e-5)
