"""Sources of rows, the choice of their format, and the records."""
