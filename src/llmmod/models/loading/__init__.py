"""Models and tokenizers from checkpoints."""
