"""What makes a training cheaper and computes the same: the head, LoRA layers, compiled layers."""
