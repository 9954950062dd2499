"""One file a stage of the paper; stages meet only in artefacts on disk."""
