"""How the transformer's blocks are computed."""
