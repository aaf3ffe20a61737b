"""Training under DiffSynth's own loop: the order of samples, and the Accelerator and ModelLogger it is given."""
