"""The trainers, one a stage, and what they share."""
