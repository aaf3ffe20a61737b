"""The one package that imports DiffSynth-Studio: the same names for both of its generations.

The generation is chosen by the version of the installed distribution, not by trying imports: DiffSynth 1.1.9 also has a
module `diffsynth.pipelines.wan_video`, which is its legacy pipeline. `..versions` has the table.
"""

from __future__ import annotations

import importlib.metadata

from ..versions import UnsupportedHostError as UnsupportedHostError
from ..versions import check_transformers, host_generation, host_version

VERSION = host_version()
GENERATION = host_generation(VERSION)
check_transformers(VERSION, importlib.metadata.version("transformers"))

if GENERATION == "wan_video":
    from .wan_video import *  # noqa: F403
else:
    from .wan_video_new import *  # noqa: F403
