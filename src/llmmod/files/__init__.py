"""Locations of files: paths on this disk, checkpoints, and the hub."""
