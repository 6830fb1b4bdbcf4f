"""Every command that the README and the site show composes and passes validation; both READMEs show the same ones."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser

from devtools.key_pages import main as write_reference
from llmmod.app import _allowed_modules
from llmmod.config.compose import compose_config
from llmmod.config.validate import validated
from llmmod.config.wording import conf_directory, groups
from llmmod.pipeline.launch import run_config
from llmmod.runs.compare import open_run
from llmmod.runs.replay import asked_for, replayed_overrides
from llmmod.sweep.plan import parsed, sweep_jobs
from llmmod.sweep.space import corners

ROOT = Path(__file__).parents[2]
PLUGINS = {"launcher=joblib": "hydra_plugins.hydra_joblib_launcher", "launcher=submitit": "hydra_plugins.hydra_submitit_launcher"}
WRITTEN = ("_build", "reference")  # folders of docs/ that make docs writes
PAGES = ["README.md", *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md") if not set(p.parts) & set(WRITTEN))]


def blocks(page, language):
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


def commands(page):
    lines = [line.split(" #")[0].strip() for block in blocks(page, "bash") for line in re.sub(r" \\\n *", " ", block).splitlines()]
    return [line for line in lines if re.match(r"(\.venv/bin/)?llmmod ", line) and "<date>" not in line]


def files(page):
    """The files that a page shows: path -> text, of each block whose first line is `# path`."""
    named = [(re.match(r"# ([\w./]+\.(?:py|yaml))\n", block), block) for kind in ("python", "yaml") for block in blocks(page, kind)]
    return {found[1]: block for found, block in named if found}


# Each command once, with the page whose files it may name.
SHOWN = {command: page for page in reversed(PAGES) for command in reversed(commands(page))}


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A directory with the files that the commands name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    row = '{"instruction": "Who?", "output": "Me."}\n'
    (tmp_path / "my.jsonl").write_text(row * 20)
    (tmp_path / "my.csv").write_text("question,answer\n" + "Who?,Me.\n" * 100)
    (tmp_path / "my.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    (tmp_path / "my_run" / "train").mkdir(parents=True)
    (tmp_path / "my_run" / "train" / "adapter_config.json").write_text("{}")
    (tmp_path / "my_run" / "train" / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "my_run" / "export").mkdir()
    (tmp_path / "my_run" / "export" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "my_run" / "export" / "model.safetensors").write_bytes(b"")
    (tmp_path / "my_reward" / "train").mkdir(parents=True)
    (tmp_path / "my_reward" / "train" / "adapter_config.json").write_text("{}")
    for step in ("train", "ppo"):
        checkpoint = tmp_path / "outputs" / "mine" / step / "checkpoint-4"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_text("{}")
        (checkpoint / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")  # a complete file without tensors
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            with zipfile.ZipFile(checkpoint / name, "w") as archive:
                archive.writestr("data.pkl", b"")
    (tmp_path / "outputs" / "one" / ".hydra").mkdir(parents=True)
    for name, text in {"run.json": "{}", ".hydra/config.yaml": "seed: 7", ".hydra/overrides.yaml": "- seed=7"}.items():
        (tmp_path / "outputs" / "one" / name).write_text(text)
    (tmp_path / "my_package.py").write_text("class MyCallback:\n    pass\n")
    yield tmp_path
    sys.modules.pop("my_package", None)


def _jobs(overrides):
    """Every third job of a grid, starting with the last; for a search, its corners."""
    return corners(parsed(overrides)) if "hydra/sweeper=llmmod_optuna" in overrides else sweep_jobs(overrides)[::-3]


def composed(command, page, work, monkeypatch):
    """The configurations of a command (for a sweep, those of `_jobs`), composed in the directory with its page's files."""
    for path, text in files(page).items():
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        (work / path).write_text(text, encoding="utf-8")
    allow, arguments = _allowed_modules(shlex.split(command)[1:])
    monkeypatch.setenv("LLMMOD_ALLOW", ",".join(allow))
    args = get_args_parser().parse_args(arguments)
    # Only the reader's own model directory can't be written here.
    overrides = [override for override in args.overrides if "/models/" not in override]
    if named := asked_for(overrides):
        overrides = replayed_overrides(open_run(named, "replay"), overrides)
    for option, package in PLUGINS.items():
        if option in command:
            pytest.importorskip(package)
    jobs = _jobs(overrides) if args.multirun else [overrides]
    return [validated(compose_config(job, config_dir=args.config_dir)) for job in jobs]


@pytest.mark.parametrize(("command", "page"), SHOWN.items())
def test_the_command_composes_and_validates(command, page, work, monkeypatch):
    assert all(config.pipeline for config in composed(command, page, work, monkeypatch))


@pytest.mark.parametrize(
    ("recipe", "left"),
    [
        ("own-render", ["train_loss", "predict_rouge-l"]),
        ("own-metric", ["predict_starts"]),
        ("own-reward", ["train_loss"]),
        ("own-step", ["count_tokens"]),
    ],
)
def test_a_recipe_s_own_part_runs_as_a_rehearsal(recipe, left, work, monkeypatch):
    page = f"docs/recipes/{recipe}.md"
    command = next(command for command in commands(page) if "smoke=true" in command and re.search("my_conf|my_package", command))
    (config,) = composed(command, page, work, monkeypatch)
    metrics = run_config(config)
    assert [name for name in left if name not in metrics] == []
    record = json.loads((Path(config.output_dir) / "run.json").read_text("utf-8"))
    assert record["status"] == "completed"


def test_there_are_commands_for_every_group():
    text = " ".join(commands("README.md"))
    for group in ("model=", "finetune=", "stage=", "dataset=", "render=", "generation=", "pipeline=", "-m ", "smoke=true"):
        assert group in text


def test_both_languages_show_the_same_commands():
    assert commands("README_zh.md") == commands("README.md")


@pytest.mark.parametrize("group", [group for group in groups() if group != "quantization"])
def test_a_group_s_page_names_every_option(group):
    page = ROOT / "docs" / "groups" / f"{group}.md"
    assert page.is_file(), f"write {page.relative_to(ROOT)}, and add it to docs/groups/index.md"
    text = page.read_text("utf-8")
    options = {path.stem for path in (conf_directory() / group).glob("*.yaml")}
    assert {option for option in options if f"`{option}`" not in text} == set()
    assert commands(f"docs/groups/{group}.md")


@pytest.mark.parametrize("page", [*PAGES, "README_zh.md", "CONTRIBUTING.md"])
def test_links_to_files_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text("utf-8"), flags=re.M | re.S)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link and "reference/" not in link]
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_paths_in_contributing_exist():
    named = re.findall(r"`((?:src|conf|tests|docs|benchmarks)/[\w./-]*)`", (ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    assert len(named) > 15
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_loads_nothing_from_other_hosts(tmp_path):
    if any(importlib.util.find_spec(name) is None for name in ("sphinx", "myst_parser", "furo")):
        pytest.skip("Sphinx is not installed; make docs installs it")
    write_reference([str(ROOT / "docs" / "reference")])
    out = tmp_path / "html"
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "-n", "--keep-going", "-q", "-d", str(tmp_path)]
    done = subprocess.run([*command, str(ROOT / "docs"), str(out)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    for page in out.rglob("*.html"):
        fetched = re.findall(r'<(?:script|img|iframe|link)[^>]* (?:src|href)="([^"]+)"', page.read_text("utf-8"))
        assert fetched
        assert not [address for address in fetched if re.match(r"(https?:)?//", address)], page
