"""sweep.html: its texts and charts, with few and with many jobs."""

import re
from html.parser import HTMLParser

import pytest
from written_runs import write_job, write_sweep

from llmmod.sweep.page import NAME, importances, write_sweep_page
from llmmod.sweep.results import Goal, best_jobs, read_jobs, refused_job


class Tree(HTMLParser):
    """Counts elements and checks that each is closed."""

    EMPTY = ("meta", "line", "polyline", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.found = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def all(self, tag, **wanted):
        return [attrs for name, attrs in self.found if name == tag and all(attrs.get(key) == value for key, value in wanted.items())]


@pytest.mark.parametrize("count", [3, 200])
def test_the_page_has_every_job_in_every_figure(count, tmp_path):
    jobs = write_sweep(tmp_path, count)
    completed = [job.number for job in jobs if job.status == "completed"]
    path = write_sweep_page(tmp_path, [*jobs, refused_job(["finetune.r=0"], "finetune.r: found 0.")], Goal())
    assert path == tmp_path / NAME
    text = path.read_text(encoding="utf-8")
    tree = Tree(text)
    assert tree.open == []
    assert len(tree.all("tr")) == count + 2  # the header and the refused job
    lines = [attrs["data-job"] for attrs in tree.all("polyline")]
    assert {number: lines.count(number) for number in completed} == dict.fromkeys(completed, 3)  # two charts, parallel coordinates
    assert len(lines) == 2 * count + len(completed)
    assert [attrs["href"] for attrs in tree.all("a") if attrs["href"].endswith("run.log")]
    assert f'href="{completed[0]}"' in text
    assert "llmmod finetune.learning_rate=" in text
    places = [float(place) for attrs in tree.all("polyline") for place in re.findall(r"-?[\d.]+", attrs["points"])]
    assert min(places) >= 0
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|url\(""", text), "the page needs the network"
    assert "&lt;b&gt;it broke" in text
    assert "<b>it broke" not in text
    assert len(text) < 1500 * count + 60_000


def test_the_table_begins_with_the_best_job(tmp_path):
    jobs = write_sweep(tmp_path, 20)
    for goal, better in ((Goal(), min), (Goal(("eval_loss",), (True,)), max)):
        tree = Tree(write_sweep_page(tmp_path, jobs, goal).read_text(encoding="utf-8"))
        best = better((job for job in jobs if job.status == "completed"), key=lambda job: job.metrics["eval_loss"])
        assert tree.all("tr")[1]["data-job"] == best.number


def test_the_metric_is_next_to_the_job_and_a_job_without_an_error_does_not_have_an_empty_box(tmp_path):
    jobs = write_sweep(tmp_path, 3)
    write_job(tmp_path / "9", ["seed=9"], "interrupted", None)
    text = write_sweep_page(tmp_path, read_jobs(tmp_path), Goal()).read_text(encoding="utf-8")
    assert re.findall(r"<th [^>]*><button[^>]*>([^<]*)", text)[:2] == ["job", "eval_loss"]
    best = best_jobs(jobs, Goal())[0]
    cells = re.search(rf'<tr id="job-{best.number}".*?</tr>', text, re.DOTALL)[0]
    assert re.findall(r'data-key="([^"]*)"', cells)[:2] == [repr(float(best.number)), repr(float(f"{best.metrics['eval_loss']:.6g}"))]
    assert "9: interrupted" in text
    assert not re.search(r"<pre>\s*</pre>", text)


def test_a_page_without_a_best_job_says_so(tmp_path):
    write_job(tmp_path / "0", ["seed=1"], "failed", None)
    text = write_sweep_page(tmp_path, read_jobs(tmp_path), Goal()).read_text(encoding="utf-8")
    assert "None of the completed jobs has eval_loss" in text
    assert "Parallel" not in text


def test_the_importances_are_highest_for_what_the_metric_depends_on(tmp_path):
    shares = {item.name: item.share for item in importances(write_sweep(tmp_path, 200), Goal())}
    assert next(iter(shares)) == "finetune.learning_rate"
    assert shares["finetune.learning_rate"] > 0.4
    assert shares["seed"] < 0.05
    assert shares["finetune.r"] < 0.2


def test_of_a_parameter_that_explains_every_difference_the_share_is_one(tmp_path):
    for number in range(8):
        write_job(tmp_path / str(number), [f"finetune.r={4 * (1 + number % 2)}", f"seed={number}"], "completed", 1.0 + number % 2)
    found = {item.name: item.share for item in importances(read_jobs(tmp_path), Goal())}
    assert found["finetune.r"] == 1.0
    assert found["seed"] is not None
    few = [job for job in read_jobs(tmp_path) if job.number in "01"]
    assert [item.share for item in importances(few, Goal())] == [None, None]
