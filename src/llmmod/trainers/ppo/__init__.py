"""Proximal policy optimization of a language model."""
