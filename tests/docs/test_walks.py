"""The walks of docs/architecture.md against the calls of real runs: the same files, in the order in which they are entered."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST = {"From the command to the first optimizer step": 30, "One row of data to the loss": 12, "What ppo adds": 15}
COMMAND, ROW, PPO = MOST
PASSED_BY = 20  # lines; tables leave out files of which a walk runs fewer
ENTERED = {COMMAND: 84, ROW: 22, PPO: 17}  # the most files of which a walk runs any line, as the page says, too


@pytest.fixture(scope="module")
def stations():
    """Heading -> the files of its table."""
    _, *sections = re.split(r"^## ", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {text.partition("\n")[0]: re.findall(r"^\| `([\w/]+\.py)`", text, flags=re.MULTILINE) for text in sections}


@pytest.fixture(scope="module")
def walks(tmp_path_factory, warm_python):
    """Heading -> the files that a run enters, with the number of their lines that it runs."""
    run_dir = tmp_path_factory.mktemp("walks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "LLMMOD_CACHE": str(run_dir / "cache")}
    commands = [["finetune=lora", "smoke=true", "pipeline=[train]", f"stage={s}", f"output_dir={run_dir / s}"] for s in ("sft", "ppo")]
    script = [*warm_python, str(ROOT / "tests" / "support" / "walks.py"), *(" ".join(command) for command in commands)]
    done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=300, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("[{")]
    assert len(lines) == 2, done.stderr
    (command, row), (ppo, _) = map(json.loads, lines)
    return {COMMAND: command, ROW: row, PPO: {file: lines for file, lines in ppo.items() if file not in command}}


@pytest.mark.parametrize("heading", MOST)
def test_the_page_names_the_files_in_the_order_in_which_they_are_entered(stations, walks, heading):
    named = stations[heading]
    assert named == [file for file in walks[heading] if file in named]
    assert 5 < len(named) <= MOST[heading]


@pytest.mark.parametrize("heading", MOST)
def test_a_file_of_which_a_walk_runs_many_lines_is_a_station(stations, walks, heading):
    on_page = {*stations[heading], *(stations[ROW] if heading == COMMAND else ())}
    assert {file: lines for file, lines in walks[heading].items() if lines >= PASSED_BY and file not in on_page} == {}


def test_the_page_says_how_many_files_are_entered_at_all(walks):
    page = " ".join((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split())
    found = re.search(r"enters up to (\d+) files, a row up to (\d+), and ppo up to (\d+) more", page)
    assert found is not None
    assert [int(number) for number in found.groups()] == [*ENTERED.values()]
    assert {heading: len(files) for heading, files in walks.items() if len(files) > ENTERED[heading]} == {}
