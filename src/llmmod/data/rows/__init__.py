"""What a row can hold: values, turns, and columns of prompts and answers."""
