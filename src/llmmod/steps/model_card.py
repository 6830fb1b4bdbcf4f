"""The README.md of an exported model: its base model, its training steps and their data, and its metrics.

The Hugging Face hub reads the front matter (https://huggingface.co/docs/hub/model-cards). The license is left out on purpose: it follows
from the licenses of the base model and the data, which this program can't know.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

import yaml

from llmmod.config.schema.base import Weights
from llmmod.config.schema.steps import Root
from llmmod.config.schema.training import reward_nodes
from llmmod.config.step_parts import StepParts
from llmmod.files.paths import is_hub_id
from llmmod.upstream import MAIN, installed

# Fields of a model's option that say nothing about this run.
_UNUSED = ("sizes", "install")
# People publish the card, so these never stand in it.
_SECRET = re.compile(r"hub_token|hf_token|password|secret|api_key|use_auth_token")


def model_card(root: Root, parts: StepParts, step: str, *, metrics: Mapping[str, float], overrides: list[str]) -> str:
    """The card as Markdown with YAML front matter.

    Args:
        root: the run's configuration.
        parts: the configuration of its steps.
        step: the step that exports.
        metrics: flat, as in metrics.json.
        overrides: the command line, as in .hydra/overrides.yaml.
    """
    history = _History(root, parts, step)
    typed = [text for text in overrides if not text.startswith("hub.") and not _SECRET.search(text)]
    return "\n".join(
        [
            "---",
            yaml.safe_dump(_front_matter(history), sort_keys=False, allow_unicode=True).rstrip(),
            "---",
            "",
            f"# {'-'.join([history.model.name, *(history.stages or ['export'])])}",
            "",
            _description(history),
            "",
            "```python",
            *(_SCORES if history.scores else _WRITES),
            "```",
            "",
            "## Metrics",
            "",
            _metrics_table(metrics),
            "",
            "## Configuration",
            "",
            "The command:",
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


_WRITES = (
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
    "",
    'model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")',
    'chat = [{"role": "user", "content": "…"}]',
    'prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)',
    'print(tokenizer.decode(model.generate(**prompt)[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))',
)
_SCORES = (
    "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
    "",
    'model, tokenizer = AutoModelForSequenceClassification.from_pretrained("."), AutoTokenizer.from_pretrained(".")',
    'chat = [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]',
    'text = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)',
    "print(model(**text).logits[0, 0].item())",
)


class _Readable(yaml.SafeDumper):
    """Writes a text of several lines on one line, with `\\n` for its line ends. Renders have many such texts."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None)


_Readable.add_representer(str, _text)


def chosen(root: Root) -> dict[str, Any]:
    """The values that differ from their schema's defaults, as plain YAML, without hub settings, secrets and the run's directory."""
    config = _differing(root)
    for name in ("hub", "output_dir"):
        config.pop(name, None)
    for name in _UNUSED if root.smoke else (*_UNUSED, "architecture"):
        config["model"].pop(name, None)
    if "steps" in config:
        config["steps"] = {name: step for name, step in config["steps"].items() if name in root.pipeline and step}
    return {name: value for name, value in config.items() if value not in ({}, [])}


def _differing(node: Any) -> Any:
    """`node` as plain values. Of each dataclass, only the fields that differ from their defaults."""
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


class _History:
    """The training steps, the data and the adapters behind the weights that a step exports.

    Args:
        root, parts, step: as in `model_card`.
    """

    def __init__(self, root: Root, parts: StepParts, step: str) -> None:
        self.root, self._parts = root, parts
        self.trained: list[str] = []  # training steps, oldest first
        earlier = parts.followed(step)
        while earlier is not None:
            self.trained.insert(0, earlier)
            earlier = parts.from_step(earlier)
        self.stages: list[str] = [self.of(name, "training").stage for name in self.trained]
        self.scores = parts.head(step) == "reward"
        self.model, self.render = self.of(step, "model"), self.of(step, "render")
        finetunes = [self.of(name, "finetune") for name in self.trained or [step]]
        self.finetunes: list[str] = [finetune.name for finetune in finetunes] if self.trained else []
        self.adapters: list[str] = [str(adapter) for finetune in finetunes for adapter in finetune.adapters]

    def of(self, step: str, part: str) -> Any:
        """One part of a step's configuration, such as its dataset."""
        return self._parts.get(self._parts.part(step, part))

    def rewards(self, step: str) -> list[str]:
        """The training steps of this run that made a step's reward models."""
        conf = getattr(self.of(step, "training"), "reward", None)
        return [] if conf is None else [node["step"] for node in reward_nodes(conf).values() if "step" in node]

    def datasets(self) -> list[Any]:
        """The datasets of the training steps and of their reward models."""
        steps = [name for step in self.trained for name in (step, *self.rewards(step))]
        return [self.of(name, "dataset") for name in steps]


def _front_matter(history: _History) -> dict[str, Any]:
    base, data = history.model.pretrained_model_name_or_path, [str(dataset.path) for dataset in history.datasets()]
    task = "text-classification" if history.scores else "text-generation"
    matter: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": task}
    if base and "/" in base and is_hub_id(base):
        matter["base_model"] = base
    if linked := list(dict.fromkeys(path for path in data if "/" in path and is_hub_id(path))):
        matter["datasets"] = linked
    matter["tags"] = ["llmmod", *dict.fromkeys([*history.stages, *history.finetunes, *(["reward-model"] if history.scores else [])])]
    return matter


def _description(history: _History) -> str:
    """The base model and the training steps, in a few sentences."""
    path = None if history.model.weights is Weights.random else history.model.pretrained_model_name_or_path
    base = f"{history.model.name} (`{path}`)" if path else f"a random initialisation of {history.model.name}"
    text = f"Made from {base} with llmmod"
    if history.trained:
        text += f": {', then '.join(_training(history, step) for step in history.trained)}"
    if history.adapters:
        text += ", with the adapters " + ", ".join(f"`{adapter}`" for adapter in history.adapters) + " merged"
    if history.scores:
        text += ". It scores a conversation that ends with an answer, and doesn't write: a higher score means a better answer"
    smoke = " It comes from a rehearsal (`smoke=true`): its weights are random, so its answers mean nothing." if history.root.smoke else ""
    return f"{text}. The chat template is the prompt format of the training (`render={history.render.name}`).{smoke}"


def _training(history: _History, step: str) -> str:
    text = f"{history.of(step, 'training').stage} ({history.of(step, 'finetune').name}) on the dataset `{history.of(step, 'dataset').name}`"
    rewards = [f"`{name}`, trained on `{history.of(name, 'dataset').name}`" for name in history.rewards(step)]
    return f"{text} with the reward model {' and '.join(rewards)}" if rewards else text


def _metrics_table(metrics: Mapping[str, float]) -> str:
    if not metrics:
        return "The run that exported this model measured none."
    return "\n".join(["| metric | value |", "|---|---|", *(f"| {name} | {value:.4g} |" for name, value in metrics.items())])
