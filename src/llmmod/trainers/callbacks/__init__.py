"""Callbacks of a training: progress, curves, interruption, resuming."""
