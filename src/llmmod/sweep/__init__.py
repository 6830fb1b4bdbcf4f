"""Sweeps: the jobs of a sweep, launching them, searching with Optuna, and the results at the end."""
