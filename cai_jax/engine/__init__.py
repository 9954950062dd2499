"""The sampling and scoring engine: token segments in, text and log-probabilities out."""
