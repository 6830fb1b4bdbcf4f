"""From a command line to a configuration: schemas, composing, messages, validation."""
