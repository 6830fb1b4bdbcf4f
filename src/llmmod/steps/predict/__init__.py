"""The step `predict`: the model's texts or scores for the held-out examples."""
