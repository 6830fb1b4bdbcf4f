"""What of a model is trained, and adapters: made, loaded, merged."""
