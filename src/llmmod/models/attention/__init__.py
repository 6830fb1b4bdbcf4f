"""Attention of our own, and positions."""
