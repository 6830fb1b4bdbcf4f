"""The demonstration data that travels with llmmod."""
