"""The README.md of an exported model: what these weights were made from, by which training steps, on what data, with what result.

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

from llmmod.config.schema.base import Weights
from llmmod.config.schema.online_training import reward_nodes
from llmmod.config.schema.steps import Root
from llmmod.config.step_parts import StepParts
from llmmod.files.paths import is_hub_id
from llmmod.upstream import MAIN, installed

# Of a model's option, what this run had no use for.
_UNUSED = ("sizes", "install")
# Never in a file that people publish.
_SECRET = re.compile(r"hub_token|hf_token|password|secret|api_key|use_auth_token")


def model_card(root: Root, parts: StepParts, step: str, *, metrics: Mapping[str, float], overrides: list[str]) -> str:
    """The card as Markdown with YAML front matter.

    Args:
        root: the run's configuration.
        parts: those of its steps.
        step: that exports.
        metrics: flat, as in metrics.json.
        overrides: what was typed, as in .hydra/overrides.yaml.
    """
    made = _Made(root, parts, step)
    typed = [text for text in overrides if not text.startswith("hub.") and not _SECRET.search(text)]
    return "\n".join(
        [
            "---",
            yaml.safe_dump(_front_matter(made), sort_keys=False, allow_unicode=True).rstrip(),
            "---",
            "",
            f"# {'-'.join([made.model.name, *(made.stages or ['export'])])}",
            "",
            _account(made),
            "",
            "```python",
            *(_SCORES if made.scores else _WRITES),
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


class _Made:
    """What went into the weights that a step exports.

    Args:
        root, parts, step: as `model_card`'s.
    """

    def __init__(self, root: Root, parts: StepParts, step: str) -> None:
        self.root, self._parts = root, parts
        self.trained: list[str] = []  # training steps, the first one first
        earlier = parts.followed(step)
        while earlier is not None:
            self.trained.insert(0, earlier)
            earlier = parts.from_step(earlier)
        self.stages: list[str] = [self.of(name, "training").stage for name in self.trained]
        self.scores = parts.head(step) == "reward"
        self.model, self.render = self.of(step, "model"), self.of(step, "render")
        finetunes = [self.of(name, "finetune") for name in self.trained or [step]]
        self.ways: list[str] = [finetune.name for finetune in finetunes] if self.trained else []
        self.adapters: list[str] = [str(adapter) for finetune in finetunes for adapter in finetune.adapters]

    def of(self, step: str, part: str) -> Any:
        """A part of a step's configuration."""
        return self._parts.get(self._parts.part(step, part))

    def rewards(self, step: str) -> list[str]:
        """The training steps of the run whose reward models a step learnt from."""
        conf = getattr(self.of(step, "training"), "reward", None)
        return [] if conf is None else [node["step"] for node in reward_nodes(conf).values() if "step" in node]

    def datasets(self) -> list[Any]:
        """The data of the training steps, and that of reward models which one of them learnt from."""
        steps = [name for step in self.trained for name in (step, *self.rewards(step))]
        return [self.of(name, "dataset") for name in steps]


def _front_matter(made: _Made) -> dict[str, Any]:
    base, data = made.model.pretrained_model_name_or_path, [str(dataset.path) for dataset in made.datasets()]
    matter: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-classification" if made.scores else "text-generation"}
    if base and "/" in base and is_hub_id(base):
        matter["base_model"] = base
    if linked := list(dict.fromkeys(path for path in data if "/" in path and is_hub_id(path))):
        matter["datasets"] = linked
    matter["tags"] = ["llmmod", *dict.fromkeys([*made.stages, *made.ways, *(["reward-model"] if made.scores else [])])]
    return matter


def _account(made: _Made) -> str:
    """How the model was made, in a few sentences."""
    path = None if made.model.weights is Weights.random else made.model.pretrained_model_name_or_path
    base = f"{made.model.name} (`{path}`)" if path else f"a random initialisation of {made.model.name}"
    text = f"Made from {base} with llmmod"
    if made.trained:
        text += f": {', then '.join(_training(made, step) for step in made.trained)}"
    if made.adapters:
        text += ", with the adapters " + ", ".join(f"`{adapter}`" for adapter in made.adapters) + " merged"
    if made.scores:
        text += ". It scores a conversation that ends with an answer, and writes nothing: the higher, the better the answer"
    smoke = " It comes from a rehearsal (`smoke=true`): its weights are random and it answers nothing." if made.root.smoke else ""
    return f"{text}. The chat template is the form that it was trained with (`render={made.render.name}`).{smoke}"


def _training(made: _Made, step: str) -> str:
    text = f"{made.of(step, 'training').stage} ({made.of(step, 'finetune').name}) on the dataset `{made.of(step, 'dataset').name}`"
    judges = [f"`{name}`, trained on `{made.of(name, 'dataset').name}`" for name in made.rewards(step)]
    return f"{text} with the reward model {' and '.join(judges)}" if judges else text


def _metrics_table(metrics: Mapping[str, float]) -> str:
    if not metrics:
        return "None were measured in the run that exported it."
    return "\n".join(["| metric | value |", "|---|---|", *(f"| {name} | {value:.4g} |" for name, value in metrics.items())])
