"""Tokenizers of 2023's checkpoints, which came with Python code of their own: the same ids, from their files alone."""
