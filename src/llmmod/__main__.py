"""`python -m llmmod …`, the same as `llmmod …`, so that torchrun and accelerate can start it."""

from __future__ import annotations

from llmmod.app import main

if __name__ == "__main__":
    main()
