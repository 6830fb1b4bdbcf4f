"""In a browser with the width of a phone and of a screen, nothing on the pages is wider than the window."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest
from written_runs import write_run, write_sweep

from llmmod.runs.report import write_report
from llmmod.sweep.page import write_sweep_page
from llmmod.sweep.results import Goal

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (360, 1280)  # pixels
# The width of each frame's content, and the elements that exceed the window without a parent that scrolls or cuts them.
MEASURE = """<script>
addEventListener("load", () => {
  const cut = (node, root) => {
    for (let up = node.parentElement; up && up !== root; up = up.parentElement)
      if (getComputedStyle(up).overflowX !== "visible") return true;
    return false;
  };
  document.title = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {
    const root = frame.contentDocument.documentElement;
    const beyond = [...root.querySelectorAll("body *")].filter(
      node => node.getBoundingClientRect().right > frame.clientWidth + 1 && !cut(node, root));
    return [root.scrollWidth, beyond.slice(0, 3).map(node => node.outerHTML.slice(0, 80))];
  }));
});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_no_page_is_wider_than_its_window(tmp_path):
    written = [write_sweep_page(tmp_path / str(count), write_sweep(tmp_path / str(count), count), Goal()) for count in (3, 200)]
    written.append(write_report(write_run(tmp_path / "run")))
    frames = [
        f'<iframe src="{path.as_uri()}" style="width:{width}px;height:900px;border:0"></iframe>' for path in written for width in WIDTHS
    ]
    (tmp_path / "all.html").write_text("".join([*frames, MEASURE]))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"]
    command = [CHROMIUM, *options, "--virtual-time-budget=20000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    shown = subprocess.run([*command, (tmp_path / "all.html").as_uri()], capture_output=True, text=True, timeout=120, check=False).stdout
    measured = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", shown, re.DOTALL)[1]))
    assert measured == [[width, []] for _ in written for width in WIDTHS]
