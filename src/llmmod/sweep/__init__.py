"""Sweeps: which jobs there are, how a launcher runs them, how a search chooses the next, and what is shown at the end."""
