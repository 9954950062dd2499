"""Dialogues, tokens, prompts, comparisons and multiple choices: everything that is read."""
