"""A fingerprint depends on every input of a training and on nothing else; the tests change them one at a time."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
from checkpoint import overrides_of, write_rows
from omegaconf import OmegaConf

from llmmod import compose
from llmmod import upstream as versions
from llmmod.cache.content import NoIdentityError
from llmmod.config.compose import to_root
from llmmod.pipeline.session import Session
from llmmod.protocols import LoadedModel
from llmmod.reuse import fingerprint as module
from llmmod.reuse.fingerprint import parts, weights_identity
from llmmod.trainers.arguments import training_arguments

FIRST = "steps__first__training__"


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_tokenizer):
    """A directory with rows and a checkpoint whose weights aren't loaded."""
    directory = tmp_path_factory.mktemp("fingerprint")
    tiny_tokenizer.save_pretrained(directory / "tiny")
    (directory / "tiny" / "config.json").write_text('{"model_type": "llama"}')
    (directory / "tiny" / "model.safetensors").write_bytes(b"weights")
    write_rows(directory / "rows.jsonl")
    return directory


@pytest.fixture(scope="module")
def config(place):
    """Two training steps, the second based on the first one's result."""
    given = overrides_of(place / "tiny", place / "rows.jsonl")
    return compose(["experiment=stages", *given, "steps.second.model={from_step: first}", f"output_dir={place}/run"])


@pytest.fixture(scope="module")
def before(config):
    """The inputs that decide the first step, unchanged."""
    return of(config)


def of(config, *, step="first", left="left", **changes):
    """Name -> value of the inputs that decide a step, with a changed configuration: `training__seed=1` is training.seed=1."""
    config = copy.deepcopy(config)
    for key, value in changes.items():
        OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
    root = to_root(config)
    session = Session(root, Path(config.output_dir))
    session.register_reused("first", LoadedModel(None, "adapter", path=session.run_dir / "first", identity=left))
    conf = session.conf(step, "training")
    args = training_arguments(conf, output_dir=session.step_dir(step), seed=root.seed, smoke=False)
    return parts(session, step, args=args, data=session.splits(step).identity)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"finetune__r": 4},
        {"finetune__learning_rate": 1e-5},
        {"finetune__lora_dropout": 0.1},
        {"model__dtype": "bfloat16"},
        {"model__kwargs": {"low_cpu_mem_usage": True}},
        {"model__gradient_checkpointing": True},
        {"render__system": "Be brief."},
        {"tokenizer__kwargs": {"model_max_length": 99}},
        {"dataset__val_size": 3},
        {"dataset__cutoff_len": 99},
        {"dataset__packing": True},
        {f"{FIRST}learning_rate": 1e-5},
        {f"{FIRST}max_steps": 7},
        {f"{FIRST}gradient_accumulation_steps": 2},
        {f"{FIRST}optim": "sgd"},
        {f"{FIRST}eval_on_start": False},
        {f"{FIRST}collator": {"_target_": "llmmod.data.collators.PaddingCollator"}},
        {f"{FIRST}callbacks": {"mine": {"_target_": "transformers.trainer_callback.PrinterCallback"}}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_decides_it_changes_it(config, before, changes):
    assert of(config, **changes) != before


@pytest.mark.parametrize(
    "changes",
    [
        {"output_dir": "elsewhere"},
        {f"{FIRST}logging_steps": 1, f"{FIRST}report_to": "tensorboard", f"{FIRST}run_name": "mine", f"{FIRST}disable_tqdm": True},
        {f"{FIRST}save_strategy": "no", f"{FIRST}save_total_limit": 9},
        {"generation__max_new_tokens": 3, "steps__second__training__learning_rate": 1e-5, "pipeline": ["first", "second"]},
        {"model__print_structure": True, "reuse": False},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_does_not_decide_it_leaves_it(config, before, changes, tmp_path):
    changes = {name: str(tmp_path / value) if name == "output_dir" else value for name, value in changes.items()}
    assert of(config, **changes) == before


def test_which_checkpoints_are_kept_counts_where_the_best_is_taken(config):
    best = {f"{FIRST}load_best_model_at_end": True, f"{FIRST}eval_strategy": "steps", f"{FIRST}eval_steps": 2}
    saving = [{f"{FIRST}save_strategy": "steps", f"{FIRST}save_steps": steps} for steps in (2, 4)]
    assert of(config, **best, **saving[0]) != of(config, **best, **saving[1])


def test_a_row_counts_and_where_it_lies_does_not(config, before, place):
    moved = place / "moved.jsonl"
    shutil.copy(place / "rows.jsonl", moved)
    assert of(config, dataset__data_files=str(moved)) == before
    moved.write_text(moved.read_text().replace("It is 5.", "It is 6."))
    assert of(config, dataset__data_files=str(moved)) != before


def test_a_weight_of_the_model_counts_and_its_date_does_not(config, before, place):
    weights = place / "tiny" / "model.safetensors"
    weights.touch()
    assert of(config) == before
    weights.write_bytes(b"weightz")
    assert of(config) != before
    weights.write_bytes(b"weights")


@pytest.mark.parametrize("package", ["torch", "transformers", "peft", "trl"])
def test_versions_count(config, before, monkeypatch, package):
    monkeypatch.setattr(module, "installed", lambda name: "9.9" if name == package else versions.installed(name))
    assert of(config) != before


def test_our_own_code_counts(config, before, monkeypatch):
    monkeypatch.setattr(module, "_own_code", lambda: "changed")
    assert of(config) != before


def test_the_code_of_a_class_of_the_users_counts(config, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LLMMOD_ALLOW", "my_callbacks")
    code = tmp_path / "my_callbacks.py"
    code.write_text("class Mine:\n    rate = 1\n")
    mine = {f"{FIRST}callbacks": {"mine": {"_target_": "my_callbacks.Mine"}}}
    first = of(config, **mine)
    code.write_text("class Mine:\n    rate = 2\n")
    assert of(config, **mine) != first


def test_changed_inputs_have_names(config, before):
    changed = of(config, seed=1, finetune__r=4, dataset__val_size=3, model__dtype="bfloat16", **{f"{FIRST}learning_rate": 1e-5})
    assert {name for name in before if before[name] != changed[name]} == {
        "seed", "finetune.r", "data", "model.dtype", "training.learning_rate",
    }  # fmt: skip
    second = [of(config, step="second", left=left) for left in ("left", "other")]
    assert [name for name in second[0] if second[0][name] != second[1][name]] == ["the model of first"]


def test_its_base_counts(config):
    assert of(config, step="second") != of(config, step="second", left="other")
    with pytest.raises(NoIdentityError, match="it builds on first, which can't be identified"):
        of(config, step="second", left=None)


def test_a_reward_counts(config, place):
    rewarded = copy.deepcopy(config)
    rewarded.steps.second.training = compose(["stage=ppo"]).training

    def by(left="left", **node):
        return of(rewarded, step="second", left=left, steps__second__training__reward=node, steps__second__model=None)

    assert by(step="first") == by(step="first") != by(step="first", left="other")
    reward = place / "reward"
    reward.mkdir()
    (reward / "adapter_config.json").write_text("{}")
    first = by(path=str(reward))
    assert first == by(path=str(reward), left="other")
    (reward / "adapter_model.safetensors").write_bytes(b"other")
    assert by(path=str(reward)) != first


def test_examples_without_identity_have_no_fingerprint(config):
    with pytest.raises(NoIdentityError, match="its examples can't be identified"):
        of(config, dataset__streaming=True, **{f"{FIRST}max_steps": 2})


def test_different_weights_give_different_fingerprints(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"one")
    first = weights_identity(tmp_path, "f")
    (tmp_path / "trainer_state.json").write_text("{}")
    assert weights_identity(tmp_path, "f") == first != weights_identity(tmp_path, "g")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"two")
    assert weights_identity(tmp_path, "f") != first
