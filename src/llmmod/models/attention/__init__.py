"""Our own attention functions, and rotary positions."""
