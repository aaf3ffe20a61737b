"""What goes along the links between these nodes, beside ComfyUI's own kinds."""

from comfy_api.latest import io

CATEGORY = "OmniAvatar"

Model = io.Custom("OMNIAVATAR_MODEL")
"""A `memory.HeldModel`."""
LoRAs = io.Custom("OMNIAVATAR_LORAS")
"""A list of (file, strength)."""
Sampling = io.Custom("OMNIAVATAR_SAMPLING")
"""A dictionary of arguments of `TalkRequest` and `DubRequest`."""
Speech = io.Custom("OMNIAVATAR_SPEECH")
"""A `diffsynth_omniavatar.EncodedSpeech`."""
FacePlaces = io.Custom("OMNIAVATAR_FACE_PLACES")
"""A `diffsynth_omniavatar.FacePlaces`."""
