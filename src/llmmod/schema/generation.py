"""`generation.*`: PROVISIONAL, the fields of transformers.GenerationConfig."""
from __future__ import annotations
from dataclasses import dataclass
from typing import Any
@dataclass
class GenerationConf:
    _target_: str = "transformers.GenerationConfig"
    do_sample: bool | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    num_beams: int | None = None
    max_length: int | None = None
    repetition_penalty: float | None = None
