"""Trainers that compare a policy with its reference: dpo and kto."""
