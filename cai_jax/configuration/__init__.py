"""Config files, the ranges of their fields, and values that follow from others."""
