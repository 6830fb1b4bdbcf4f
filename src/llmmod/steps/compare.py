"""The step `compare`: the differences between two runs, in the terminal and on a page. It reads only the runs' records."""

from __future__ import annotations

from typing import Any

from llmmod.config.schema.steps import CompareConf
from llmmod.distributed import rank
from llmmod.errors import ConfigError, Problem
from llmmod.pages.page import write_page
from llmmod.protocols import StepReport
from llmmod.runs.compare import comparison_page, differences, lines, open_run

_PAGE = "compare.html"


class Compare:
    """The step `compare`.

    Args:
        conf: `steps.<name>`.
        name: the step's name, and that of its directory.
    """

    def __init__(self, conf: CompareConf, name: str) -> None:
        self.conf, self.name = conf, name

    def run(self, session: Any) -> StepReport:
        """Report the differences, and write `<run>/<name>/compare.html`.

        Raises:
            ConfigError: there are not two runs to compare, or one of them isn't a run.
        """
        key = f"steps.{self.name}.runs"
        if len(self.conf.runs) != 2:
            raise ConfigError(Problem(key, f"{len(self.conf.runs)} runs", "Allowed: two runs", f"Name them: '{key}=[outputs/a,outputs/b]'"))
        one, other = (open_run(path, key) for path in self.conf.runs)
        if rank() != 0:
            return StepReport()
        found = differences(one, other)
        directory = session.step_dir(self.name)
        write_page(directory / _PAGE, comparison_page(one, other, found))
        summary = [*lines(one, other, found), f"{self.name}: the page is {directory / _PAGE}"]
        return StepReport(artifacts={"page": f"{self.name}/{_PAGE}"}, summary=summary)
