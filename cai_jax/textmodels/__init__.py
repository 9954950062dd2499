"""Models that stages ask for turns and choices, in words."""
