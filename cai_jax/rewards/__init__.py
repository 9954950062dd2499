"""Rewards of whole dialogues."""
