"""The configuration of llmmod as YAML: choices and values, never logic."""
