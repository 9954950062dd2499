"""The training loop that supervised, preference-model and PPO stages share."""
