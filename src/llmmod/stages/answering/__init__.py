"""What ppo and grpo share: the policy answers, and its answers are scored, compared with the reference, told of."""
