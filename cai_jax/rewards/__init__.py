"""Rewards of answers, for reinforcement learning, evaluation and best-of-n."""
