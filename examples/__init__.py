"""Programs to read; run from the project's directory."""
