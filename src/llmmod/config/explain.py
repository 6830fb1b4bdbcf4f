"""Refusals of Hydra and OmegaConf in our words: the key as typed, what was found, what is allowed, what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from enum import Enum
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from llmmod.config.wording import (
    PARTS,
    allowed,
    expected,
    groups,
    hints,
    nearest_or_all,
    no_such_field,
    part_of,
    shown,
    split_key,
    typed_nodes,
    union_members,
)
from llmmod.errors import Problem, first_line, one_line

_PLACE_OF_GROUP = {"quantization": "model.quantization"}  # groups that aren't in the main defaults list, and where they go


def explain_parse_error(text: str, error: BaseException) -> Problem:
    """The problem of an override that Hydra's grammar can't parse."""
    if "=" not in text:
        return Problem(text or "''", "is not an override", do="Write key=value or group=option")
    opened = next((o for o, c in ("[]", "{}", "()") if text.count(o) > text.count(c)), None)
    if opened:
        return Problem(text, f"can't be read: '{opened}' is not closed", do="Quote the whole override for your shell: 'key=[a,b]'")
    if text.count("'") % 2 or text.count('"') % 2:
        return Problem(text, "can't be read: a quote is not closed")
    at = re.search(r"(?:input|at:?) '(.*?)'(?: expecting|$)", first_line(error))
    reason = f"unexpected {at[1]}" if at else first_line(error)
    return Problem(text, f"can't be read: {reason}", do="Quote the value: 'key=\"value\"'")


def explain_compose_error(error: BaseException, choosing: Mapping[int, Override], config_name: str) -> tuple[int | None, Problem]:
    """The position of the choice that made composing fail, or None, and its problem."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file == config_name:
        return None, Problem("--config-name", f"'{config_name}' is not a configuration")
    file = re.match(r"In '([^']+)'", text)
    if isinstance(error, MissingConfigException):
        missing = str(error.missing_cfg_file)
        group, _, option = missing.rpartition("/")
        near = nearest_or_all(option, [str(o) for o in error.options or []])
        return _position_of_cause(missing, choosing, file), Problem(f"{group}={option}", "no such option", near, _named_in(file))
    if isinstance(error, yaml.YAMLError):
        mark = getattr(error, "problem_mark", None)
        place = f"{mark.name}, line {mark.line + 1}" if mark else "a YAML file"
        return None, Problem(place, f"is not valid YAML: {getattr(error, 'problem', None) or first_line(error)}")
    if isinstance(error, UnicodeDecodeError):
        line = error.object[error.object.rfind(b"\n", 0, error.start) + 1 :].split(b"\n")[0].decode("utf-8", "backslashreplace")
        found = f"not UTF-8 text: byte 0x{error.object[error.start]:02x} can't be read, in '{line.strip()[:80]}'"
        return None, Problem("a YAML file of --config-dir", found, do="Save it as UTF-8")
    blamed = _position_of_cause(text, choosing, file)
    if inner := re.match(r"In '([^']+)': Could not override '([^']+)'", text):
        return blamed, Problem(f"override {inner[2]}", "no such group", nearest_or_all(inner[2], groups()), f"It is in {inner[1]}.yaml")
    if cause := _omegaconf(error):
        return blamed, _explain_file(cause, file[1] if file else "")
    if blamed is None:
        return None, Problem("defaults", " ".join(text.split()))
    return blamed, _explain_choice(choosing[blamed], error)


def _explain_choice(override: Override, error: BaseException) -> Problem:
    """The problem of a choice that doesn't match the defaults list, or that Hydra refuses for another reason."""
    typed, group = str(override.input_line), override.key_or_group
    if "Did you mean" in str(error):
        return Problem(typed, "this group has no such place", re.sub(r".*(Did you mean .*?\?).*", r"\1", str(error), flags=re.DOTALL))
    if "No match in the defaults list" in str(error):
        place = _PLACE_OF_GROUP.get(group, override.package or group)
        return Problem(typed, "an option of this group is not chosen yet", do=f"To add one, write +{group}@{place}={override.value()}")
    if str(error).startswith("Multiple values for") or "appears more than once" in str(error):
        return Problem(typed, "an option of this group is chosen already", do="Leave out the +")
    return Problem(typed, one_line(error))


def explain_apply_error(override: Override, error: BaseException, config: DictConfig, choices: Mapping[str, str]) -> Problem:
    """The problem of an override that the composed configuration doesn't accept."""
    key = override.key_or_group
    if override.package is not None:
        return Problem(str(override.input_line), f"'{key}' is not a group")
    if key.startswith("hydra.") or key == "hydra":
        return _explain_hydra_key(override, error, config)
    if problem := _below_null(key, override.value(), config):
        return problem
    cause = _omegaconf(error)
    if override.is_delete():
        found = "can't be removed" if cause else "does not exist, so it can't be removed"
        return Problem(f"~{key}", found, do=f"Set {key}=null to give it no value" if cause else "")
    if override.is_add() and cause is None:
        return Problem(f"+{key}", "exists already", do="Leave out the +")
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)):
        deepest = str(cause.full_key or "")
        return no_such_field(deepest if deepest.startswith(f"{key}.") else key, config, choices)
    found = f"found {shown(override.value())}: {first_line(cause or error)}"
    return wrong_value(key, override.value(), typed_nodes(config)) or Problem(key, found)


def check_replaced_node(override: Override, nodes: Mapping[str, type]) -> Problem | None:
    """The problem of a value that would replace a whole part, which OmegaConf allows if the part isn't typed."""
    key, value = override.key_or_group, override.value()
    if override.is_delete() or isinstance(value, dict) or (isinstance(value, str) and value.startswith("${")):
        return None
    group, node, rest = part_of(key)
    if rest or node != key or group not in ("finetune", "stage", "step") or key not in nodes:
        return None
    if value is None and key.startswith("steps.") and group != "step":
        return None  # null: a step's part is the root's
    return Problem(key, f"found {shown(value)}", "Expected keys with values", f"Choose an option: {group}=…")


def check_coercion(override: Override, nodes: Mapping[str, type]) -> Problem | None:
    """The problem of a value that OmegaConf would silently convert: 5 to true, true to the text 'True'."""
    value = override.value()
    hint = None if override.is_delete() else _hint(override.key_or_group, nodes)
    taken = set(union_members(hint)) - {type(None)}
    number_for_flag = taken == {bool} and isinstance(value, (int, float)) and not isinstance(value, bool)
    flag_for_text = taken == {str} and isinstance(value, bool)
    return wrong_type(override.key_or_group, value, hint) if number_for_flag or flag_for_text else None


def wrong_value(key: str, value: Any, nodes: Mapping[str, type]) -> Problem | None:
    """The problem of a value that a typed field doesn't accept; None if the field isn't typed."""
    hint = _hint(key, nodes)
    if hint is None:
        parts = split_key(key)
        if len(parts) > 1 and _hint(".".join(parts[:-1]), nodes) is not None:
            return Problem(key, f"{'.'.join(parts[:-1])} is a single value without keys")
        return None
    return wrong_type(key, value, hint)


def wrong_type(key: str, value: Any, hint: Any) -> Problem:
    """The problem of a value that a type doesn't accept."""
    enums = [member for member in union_members(hint) if isinstance(member, type) and issubclass(member, Enum)]
    if enums:
        return Problem(key, f"found {shown(value)}", allowed(value, [member.name for member in enums[0]]))
    whole = isinstance(value, float) and value.is_integer() and int in union_members(hint)
    do = f"Write {int(value)}" if whole else ""
    return Problem(key, f"found {shown(value)}", f"Expected {expected(hint)}", do)


def _hint(key: str, nodes: Mapping[str, type]) -> Any:
    """The type of a field; None if it isn't a dataclass's field."""
    parts = split_key(key)
    schema = nodes.get(".".join(parts[:-1]))
    return hints(schema).get(parts[-1]) if schema is not None else None


def _below_null(key: str, value: Any, config: DictConfig) -> Problem | None:
    """The problem of a key below a key that is null."""
    node: Any = OmegaConf.to_container(config, resolve=False)
    parts = split_key(key)
    for depth, part in enumerate([*parts, *(value if isinstance(value, dict) else {})]):
        if node is None:
            null, rest = ".".join(parts[:depth]), ".".join(parts[depth:]) or "a"
            group, place, _ = part_of(f"{null}.x")
            if null.startswith("steps.") and null == place:
                found = f"{null} is null, so the step uses the root's, which can't be set here"
                return Problem(key, found, do=f"Choose one for this step: +{group}@{null}=…")
            return Problem(key, f"{null} is null, so it doesn't have keys to set", do=f"Set all of it: '{null}={{{rest}: …}}'")
        if not isinstance(node, dict) or part not in node:
            return None
        node = node[part]
    return None


def check_null_part(override: Override, config: DictConfig) -> Problem | None:
    """The problem of a key of a step's part that is null: if it isn't typed, OmegaConf would create a part with only that key."""
    parts = split_key(override.key_or_group)
    if parts[0] != "steps" or len(parts) < 4 or parts[2] not in PARTS or parts[2:] == ["model", "from_step"]:
        return None
    step = OmegaConf.select(config, ".".join(parts[:2]))
    null = isinstance(step, DictConfig) and parts[2] in step and step[parts[2]] is None
    return _below_null(override.key_or_group, override.value(), config) if null else None


def _explain_hydra_key(override: Override, error: BaseException, config: DictConfig) -> Problem:
    cause, key = _omegaconf(error), override.key_or_group
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)):
        schema = cause.object_type
        names = list(hints(schema)) if isinstance(schema, type) and is_dataclass(schema) else []
        return Problem(key, "no such field", nearest_or_all(split_key(key)[-1], names))
    return Problem(key, first_line(cause or error))


def _explain_file(cause: OmegaConfBaseException, file: str) -> Problem:
    """The problem of a key or a value in an option's file."""
    key = str(cause.full_key or cause.key or "")
    if not key:
        return Problem(f"{file}.yaml", first_line(cause))
    place = f"It is in {file}.yaml" if file else ""
    schema: Any = cause.object_type
    known = hints(schema) if isinstance(schema, type) and is_dataclass(schema) else {}
    name = split_key(key)[-1] if split_key(key) else key
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)):
        return Problem(key, "no such field", nearest_or_all(name, list(known)), place)
    if isinstance(cause, ValidationError) and name in known:
        found = re.search(r"[Vv]alue '(.*?)'", str(cause))
        problem = wrong_type(key, found[1] if found else cause.value, known[name])
        return Problem(key, problem.found, problem.allowed, place)
    return Problem(key, first_line(cause), do=place)


def _position_of_cause(text: str, choosing: Mapping[int, Override], file: re.Match[str] | None) -> int | None:
    """The position of the override that an error is about: by its own key, or by the option that it chose."""
    words = {word.strip("'\".,:") for word in text.split()}
    for position, override in choosing.items():
        option = f"{override.key_or_group}/{override.value()}"
        key = override.get_key_element().lstrip("+~")
        if option == text or (file and file[1] == option) or key in words:
            return position
    return None


def _named_in(file: re.Match[str] | None) -> str:
    return f"It is named in {file[1]}.yaml" if file and file[1] != "config" else ""


def _omegaconf(error: BaseException | None) -> OmegaConfBaseException | None:
    """OmegaConf's error that caused an error, or the error itself."""
    while error is not None:
        if isinstance(error, OmegaConfBaseException):
            return error
        error = error.__cause__ or error.__context__
    return None
