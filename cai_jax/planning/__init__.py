"""What a run would need on chips that are not there: memory, arithmetic, traffic and time of every
compiled program."""
