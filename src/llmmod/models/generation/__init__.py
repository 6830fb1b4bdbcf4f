"""Generation of completions, and their ends."""
