"""What LoRA takes: its configuration as peft has it, names held against the model, first values that come from the base's weights."""
