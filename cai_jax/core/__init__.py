"""Pure arithmetic: losses, labels, PPO, optimisers, sharding."""
