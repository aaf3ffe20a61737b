"""OmniAvatar (audio-driven avatars on Wan 2.1) as a plugin of DiffSynth-Studio."""

__version__ = "0.1.0"
