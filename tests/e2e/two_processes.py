"""What each of two processes does in test_two_processes.py: runs, by their overrides, one after the other."""

import json
import sys

import llmmod
from llmmod.reuse import fingerprint

fingerprint._own_code = lambda: "ours"  # a checkout may be written to while tests run
for overrides in json.loads(sys.argv[1]):
    llmmod.run(llmmod.compose(overrides))
