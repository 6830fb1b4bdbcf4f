"""The step `predict`: what the model writes, or scores, for the held-out examples."""
