"""The step `predict`: what a model makes of the held-out examples."""
