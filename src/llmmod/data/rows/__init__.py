"""What a row can hold: turns, prompts with completions, documents."""
