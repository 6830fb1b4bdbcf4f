"""The step `preview`: shows the training examples before a training."""
