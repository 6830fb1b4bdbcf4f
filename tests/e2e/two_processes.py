"""What each of two processes does in test_two_processes.py: the same run twice, the second time with another learning rate for ppo."""

import sys

import llmmod
from llmmod.steps import fingerprint

fingerprint._own_code = lambda: "ours"  # a checkout may be written to while tests run
place, *overrides = sys.argv[1:]
for name, rate in (("one", 1e-3), ("two", 1e-2)):
    llmmod.run(llmmod.compose([*overrides, f"steps.ppo.training.learning_rate={rate}", f"output_dir={place}/{name}"]))
