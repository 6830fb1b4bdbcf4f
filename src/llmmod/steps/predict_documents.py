"""What the step `predict` does for pre-training: nothing, and says why. Documents have no prompts that answers could be compared to."""

from __future__ import annotations

from typing import Any

from llmmod.protocols import StepReport
from llmmod.schema.step.predict import PredictConf


class PredictDocuments:
    """`training.predict` of stages that learn from documents.

    Args:
        conf: `steps.<name>`.
        name: the step's name.
    """

    def __init__(self, conf: PredictConf, name: str) -> None:
        self.conf, self.name = conf, name

    def run(self, session: Any) -> StepReport:
        """Nothing but a line for the end of the run."""
        return StepReport(summary=[f"{self.name}: documents have no prompts to answer; the step evaluate has the perplexity"])
