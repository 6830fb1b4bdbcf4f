"""Trainers whose policy writes completions that are scored: grpo, and the common base of grpo and ppo."""
