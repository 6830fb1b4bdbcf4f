"""Where files are: paths of this disk, checkpoints, and the hub."""
