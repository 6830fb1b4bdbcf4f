"""The README.md of an exported model: what it was made from, how, on what, with what result.

Its front matter is what the Hugging Face hub reads (https://huggingface.co/docs/hub/model-cards). A license is left out on purpose: it
follows from the base model's and the data's, which this program can't know.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

import yaml

from llmmod.schema.base import Weights
from llmmod.schema.root import Root
from llmmod.schema.step.train import TrainConf
from llmmod.versions import MAIN, installed

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Of a model's option, what this run had no use for.
_UNUSED = ("sizes", "install")
# Never in a file that people publish.
_SECRET = re.compile(r"hub_token|hf_token|password|secret|api_key|use_auth_token")


def model_card(root: Root, *, metrics: Mapping[str, float], overrides: list[str]) -> str:
    """The card as Markdown with YAML front matter.

    Args:
        root: the run's configuration.
        metrics: flat, as in metrics.json.
        overrides: what was typed, as in .hydra/overrides.yaml.
    """
    stages = _stages(root)
    typed = [text for text in overrides if not text.startswith("hub.") and not _SECRET.search(text)]
    return "\n".join(
        [
            "---",
            yaml.safe_dump(_front_matter(root, stages), sort_keys=False, allow_unicode=True).rstrip(),
            "---",
            "",
            f"# {'-'.join([root.model.name, *(stages or ['export'])])}",
            "",
            _account(root, stages),
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")',
            'chat = [{"role": "user", "content": "…"}]',
            'prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)',
            'print(tokenizer.decode(model.generate(**prompt)[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))',
            "```",
            "",
            "## Metrics",
            "",
            _metrics_table(metrics),
            "",
            "## Configuration",
            "",
            "Made by",
            "",
            "```bash",
            " ".join(["llmmod", *(f"'{text}'" if re.search(r"[^\w./=,:@+-]", text) else text for text in typed)]),
            "```",
            "",
            "What differs from llmmod's and its libraries' defaults:",
            "",
            "```yaml",
            yaml.dump(chosen(root), Dumper=_Readable, sort_keys=False, allow_unicode=True, width=120).rstrip(),
            "```",
            "",
            "## Versions",
            "",
            ", ".join(f"{name} {installed(name) or 'not installed'}" for name in MAIN),
            "",
        ]
    )


class _Readable(yaml.SafeDumper):
    """Writes a text of several lines as one, with its line ends spelt: renders are full of them."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None)


_Readable.add_representer(str, _text)


def chosen(root: Root) -> dict[str, Any]:
    """The configuration's values that differ from their schema's defaults, as plain YAML; no hub settings, no secrets, no run directory."""
    config = _differing(root)
    for name in ("hub", "output_dir"):
        config.pop(name, None)
    for name in _UNUSED if root.smoke else (*_UNUSED, "architecture"):
        config["model"].pop(name, None)
    if "steps" in config:
        config["steps"] = {name: step for name, step in config["steps"].items() if name in root.pipeline and step}
    return {name: value for name, value in config.items() if value not in ({}, [])}


def _differing(node: Any) -> Any:
    """`node` as plain values, each dataclass reduced to the fields that differ from its defaults."""
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        fields = {field.name: (getattr(node, field.name), _default(field)) for field in dataclasses.fields(node)}
        return _plain({name: value for name, (value, default) in fields.items() if value != default and not _SECRET.fullmatch(name)})
    return _plain(node)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return _differing(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items() if not _SECRET.fullmatch(str(name))}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else dataclasses.MISSING


def _stages(root: Root) -> list[str]:
    """The training stages of the pipeline, in order, e.g. [sft]."""
    steps = [root.steps[name] for name in root.pipeline if isinstance(root.steps[name], TrainConf)]
    return [(step.training or root.training).stage for step in steps]


def _front_matter(root: Root, stages: list[str]) -> dict[str, Any]:
    base, data = root.model.pretrained_model_name_or_path, root.dataset.path
    matter: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if base and _HUB_ID.fullmatch(base):
        matter["base_model"] = base
    if stages and data and _HUB_ID.fullmatch(data):
        matter["datasets"] = [data]
    matter["tags"] = ["llmmod", *stages, *([root.finetune.name] if stages else [])]
    return matter


def _account(root: Root, stages: list[str]) -> str:
    """How the model was made, in a sentence or two."""
    path = None if root.model.weights is Weights.random else root.model.pretrained_model_name_or_path
    base = f"{root.model.name} (`{path}`)" if path else f"a random initialisation of {root.model.name}"
    text = f"Made from {base} with llmmod"
    if stages:
        text += f": {', '.join(stages)} ({root.finetune.name}) on the dataset `{root.dataset.name}`"
    if root.finetune.adapters:
        text += ", with the adapters " + ", ".join(f"`{adapter}`" for adapter in root.finetune.adapters) + " merged"
    smoke = " It comes from a rehearsal (`smoke=true`): its weights are random and it answers nothing." if root.smoke else ""
    return f"{text}. The chat template is the form that it was trained with (`render={root.render.name}`).{smoke}"


def _metrics_table(metrics: Mapping[str, float]) -> str:
    if not metrics:
        return "None were measured in the run that exported it."
    return "\n".join(["| metric | value |", "|---|---|", *(f"| {name} | {value:.4g} |" for name, value in metrics.items())])
