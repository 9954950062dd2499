"""Speed and memory, measured against what a user would otherwise pick."""
