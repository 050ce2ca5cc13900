"""Files of two packages: the prompts and scenes of `entropy_probe.data`, the models of `entropy_probe_models`."""
