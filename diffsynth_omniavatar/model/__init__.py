"""What is loaded: the transformer, the speech encoder, checkpoints."""
