"""The graph of stages: checks before a run, what changed, what runs next."""
