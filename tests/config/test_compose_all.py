"""Every shipped option of every group: its own command composes, fully typed, without heavy imports.

One subprocess composes all of them, so that its `sys.modules` shows what composing imports.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CONF = Path(__file__).resolve().parents[2] / "conf"
FILES = sorted(path for path in CONF.glob("*/**/*.yaml"))
IDS = [str(path.relative_to(CONF).with_suffix("")) for path in FILES]
HEAVY = ("torch", "transformers", "datasets", "peft", "trl", "accelerate", "numpy")
# the field of a schema that repeats the file's name
NAME_FIELD = {"model": "name", "dataset": "name", "render": "name", "finetune": "name", "stage": "stage", "distributed": "name"}
# node -> the dataclass that it is an instance of, in llmmod.config.schema
TYPES = {
    "": "steps.Root",
    "model": "model.ModelConf",
    "model.quantization": "model.QuantizationConf",
    "model.rope_scaling": "model.RopeScalingConf",
    "tokenizer": "model.TokenizerConf",
    "finetune": "model.FinetuneConf",
    "training": "training.StageConf",
    "dataset": "data.DatasetConf",
    "dataset.columns": "data.ColumnsConf",
    "render": "data.RenderConf",
    "generation": "generation.GenerationConf",
    "distributed": "distributed.DistributedConf",
    "distributed.fsdp": "distributed.FsdpConf",
    "distributed.deepspeed": "distributed.DeepspeedConf",
    "hub": "model.HubConf",
}
PARTS = ("model", "finetune", "training", "dataset", "render")  # parts that a step may have of its own

COMPOSE = """
import json, sys
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from llmmod.config.register import register_schemas

def typed(config, key):
    node = OmegaConf.select(config, key) if key else config
    return [f"{c.__module__}.{c.__qualname__}" for c in OmegaConf.get_type(node).__mro__] if OmegaConf.is_config(node) else None

register_schemas()
found = {}
asked = json.load(sys.stdin)
with initialize_config_module("llmmod.conf", version_base="1.3"):
    for option, overrides in asked["commands"].items():
        try:
            config = compose("config", overrides=overrides, return_hydra_config=True)
            choices = OmegaConf.to_container(config.hydra.runtime.choices)
            keys = [*asked["keys"], *(f"steps.{s}" for s in config.steps)]
            keys += [f"steps.{s}.{p}" for s in config.steps for p in asked["parts"]]
            types = {key: typed(config, key) for key in keys}
            names = {g: OmegaConf.select(config, f"{'training' if g == 'stage' else g}.{field}") for g, field in asked["names"].items()}
            found[option] = {"choices": choices, "types": types, "names": names}
        except Exception as error:
            found[option] = {"error": f"{type(error).__name__}: {error}"}
print(json.dumps({"found": found, "modules": sorted(sys.modules)}))
"""


def leading_comments(path: Path) -> list[str]:
    lines = path.read_text("utf-8").splitlines()
    return lines[: next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))]


def command(path: Path) -> list[str] | None:
    """The overrides of the first comment with a command: the words after `llmmod`, up to the first without an equals sign."""
    line = next((line for line in leading_comments(path) if line.startswith("# llmmod ")), None)
    if line is None:
        return None
    overrides = []
    for quoted, plain in re.findall(r"'([^']*)'|(\S+)", line.removeprefix("# llmmod ")):
        if "=" not in (quoted or plain) and not plain.startswith(("-", "~")):
            break
        overrides.append(quoted or plain)
    # for a sweep: the overrides that all of its jobs share
    return [o for o in overrides if not o.startswith("-") and not re.search(r"=(tag|choice|range|interval)\(", o)]


@pytest.fixture(scope="module")
def composed():
    # Several values make a sweep; the first one stands for the rest.
    first = {option: [re.sub(r"=([^\[{(',]*),.*", r"=\1", o) for o in command(path) or []] for option, path in zip(IDS, FILES, strict=True)}
    asked = {"commands": {"": [], **first}, "keys": list(TYPES), "parts": PARTS, "names": NAME_FIELD}
    done = subprocess.run([sys.executable, "-c", COMPOSE], input=json.dumps(asked), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_there_are_options_to_compose():
    assert {"model/smollm2", "finetune/qlora", "stage/sft", "render/chatml", "generation/greedy", "step/train"} <= set(IDS)


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_the_first_comment_names_the_command(path):
    assert command(path), f"no comment on top of {path} starts with `# llmmod `"


@pytest.mark.parametrize("option", ["", *IDS])
def test_it_composes_and_every_node_is_backed_by_a_dataclass(option, composed):
    result = composed["found"][option]
    assert "error" not in result, result["error"]
    expected = {key: f"llmmod.config.schema.{name}" for key, name in TYPES.items()}
    expected |= {key: "llmmod.config.schema.steps.StepConf" for key in result["types"] if re.fullmatch(r"steps\.\w+", key)}
    own = [key for key, bases in result["types"].items() if re.fullmatch(r"steps\.\w+\.\w+", key) and bases is not None]
    expected |= {key: expected[key.rpartition(".")[2]] for key in own}
    assert {key: bases for key, bases in result["types"].items() if key in expected and expected[key] not in (bases or [])} == {}


@pytest.mark.parametrize("option", IDS)
def test_its_command_chooses_it(option, composed):
    group, _, name = option.rpartition("/")
    choices = composed["found"][option]["choices"]
    assert name in [value for key, value in choices.items() if key.partition("@")[0] == group]


NAMED = [path for path in FILES if path.parent.name in NAME_FIELD]


@pytest.mark.parametrize("path", NAMED, ids=[f"{path.parent.name}/{path.stem}" for path in NAMED])
def test_its_name_is_its_file_s(path, composed):
    field = NAME_FIELD[path.parent.name]
    assert yaml.safe_load(path.read_text("utf-8"))[field] == path.stem
    assert composed["found"][f"{path.parent.name}/{path.stem}"]["names"][path.parent.name] == path.stem


def test_nothing_heavy_is_imported(composed):
    assert "llmmod.config.schema.training" in composed["modules"]
    assert [name for name in HEAVY if name in composed["modules"]] == []
