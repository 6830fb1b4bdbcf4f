"""What a run leaves in its directory, read again: its report, how two runs differ, and whether one can be repeated."""
