"""What dpo and kto share: a model that is compared with what it was before training."""
