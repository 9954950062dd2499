"""Decoders as pure functions, and the doors to Hugging Face directories and GGUF files."""
