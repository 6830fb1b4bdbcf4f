"""Trainers whose policy writes completions that are scored: grpo, and what it shares with ppo."""
