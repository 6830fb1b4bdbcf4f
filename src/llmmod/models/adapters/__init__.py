"""The trained parts of a model, and adapters: created, loaded, merged."""
