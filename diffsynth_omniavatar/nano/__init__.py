"""A small model family of the same classes as 14B, for tests and for the demonstration."""
