"""Losses: the host's flow-matching loss with OmniAvatar's frames and weights."""
