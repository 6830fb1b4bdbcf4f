"""Training steps of earlier runs, found again by their fingerprint and reused."""
