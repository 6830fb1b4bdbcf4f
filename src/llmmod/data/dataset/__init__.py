"""From `dataset.*` to examples to train on and examples to validate with."""
