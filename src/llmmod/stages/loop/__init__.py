"""What goes on around the steps of a training: progress and curve, checkpoints, interruption, what was measured."""
