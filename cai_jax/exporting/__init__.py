"""Trained models as directories for other tools."""
