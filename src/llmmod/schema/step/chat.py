"""`chat`: a conversation in the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmmod.schema.step import SPEAKS, StepConf


@dataclass
class ChatConf(StepConf):
    """A conversation in the terminal."""

    reads: ClassVar[tuple[str, ...]] = SPEAKS
    needs_model: ClassVar[bool] = True

    _target_: str = "llmmod.steps.chat.Chat"
    system: str | None = None  # the system text of the conversation; None: the render's
    history: bool = True  # false: each question stands alone
