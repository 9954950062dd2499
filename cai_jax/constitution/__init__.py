"""Principles and worked examples, ours or the paper's, as data a person can edit."""
