"""A callback that saves gradients, for `distributed.py` and for the tests."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import TrainerCallback


class Gradients(TrainerCallback):
    """Saves the first optimizer step's gradients, whole, next to the model: `gradients.pt`."""

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        """Every process takes part, since each may have only a part of a gradient; the first one saves."""
        found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        found = {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in found.items()}
        if args.process_index == 0 and state.global_step == 0:
            torch.save(found, Path(args.output_dir) / "gradients.pt")
