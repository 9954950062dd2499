"""Artefacts, checkpoints, metrics and progress: where the program touches the outside world."""
