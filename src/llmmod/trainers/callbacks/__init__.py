"""What happens around the steps of a training: progress, curves, interruption, resuming."""
