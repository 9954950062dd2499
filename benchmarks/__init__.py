"""Speed and memory, measured beside what a user would otherwise pick."""
