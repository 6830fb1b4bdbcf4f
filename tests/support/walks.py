"""The files of our source that commands enter up to their first optimizer step, in order: `python tests/support/walks.py 'smoke=true …' …`.

Function calls count; code that runs when a module is imported doesn't. Checks are left out, with everything they call. Each argument is a
command, for which a line of JSON is printed. Only the first command enters a file that just fills a cache.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import datasets  # noqa: F401  # before the trace, which would double the time
import trl.trainer.grpo_trainer  # noqa: F401
from torch.optim.optimizer import register_optimizer_step_pre_hook

import llmmod.app

SOURCE = Path(llmmod.__file__).parent
# Checks only refuse or warn: these modules, and functions with these names, with everything that they call.
CHECK_MODULES = re.compile(
    r"(config/validate/(?!__init__)|config/explain|render/(certificate|findings)|(upstream|targets|code_arguments|errors)\.py)"
)
CHECK_NAMES = re.compile(r"_?(check|validate|certify|refuse|warn)(_|d\b|$)")
# Below these calls a row of data is processed: rows become examples, examples a batch, a batch a loss.
ROW = re.compile(r"data/dataset/build\.py:build_dataset|data/.*collators\.py:__call__|trainers/.*:compute_loss")


class Walk:
    """Records the files in the order in which they are entered.

    Args:
        command: file -> the lines that ran, outside of checks.
        row: the same, while a row is processed.
    """

    def __init__(self) -> None:
        self.command: dict[str, set[int]] = {}
        self.row: dict[str, set[int]] = {}
        self._roles: dict[tuple[str, str], tuple[str, bool, bool] | None] = {}

    def role(self, code):
        """(file, whether it is a check, whether it processes a row) for a function of our source, else None."""
        key = (code.co_filename, code.co_name)
        if key not in self._roles:
            ours = code.co_filename.startswith(f"{SOURCE}/")
            file = Path(code.co_filename).relative_to(SOURCE).as_posix() if ours else ""
            check = code.co_name == "<module>" or bool(CHECK_MODULES.match(file) or CHECK_NAMES.match(code.co_name))
            self._roles[key] = (file, check, bool(ROW.fullmatch(f"{file}:{code.co_name}"))) if ours else None
        return self._roles[key]

    def __call__(self, frame, event, arg):
        """The function that `sys.settrace` calls for each call; returns the one for each line."""
        own = self.role(frame.f_code)
        if own is None or (frame.f_code.co_name[0] != "<" and not frame.f_code.co_flags & 2):  # not ours, or the body of a class
            return None
        if own[1]:
            return None
        above, row = frame.f_back, own[2]
        while above is not None and self.role(above.f_code) is None:
            above = above.f_back
        if above is not None:  # the nearest function of ours, whose own call was decided before
            if above.f_trace is None:
                return None
            row = row or above.f_trace.row
        places = [walk.setdefault(own[0], set()) for walk in [self.command] + [self.row] * row]

        def line(frame, event, arg):
            for place in places:
                place.add(frame.f_lineno)
            return line

        line.row = row
        return line


def main() -> None:
    """Run the commands, and print the files of each with the number of their lines that ran."""
    for command in sys.argv[1:]:
        walk = Walk()

        def stop(*args, walk=walk):
            sys.settrace(None)
            print(json.dumps([{file: len(lines) for file, lines in files.items()} for files in (walk.command, walk.row)]), flush=True)
            raise KeyboardInterrupt

        hook = register_optimizer_step_pre_hook(stop)
        sys.settrace(walk)
        llmmod.app.run_command(["llmmod", *command.split()])
        hook.remove()


if __name__ == "__main__":
    main()
