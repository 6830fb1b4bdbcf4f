"""The configuration that overrides compose to, and the full messages for wrong ones, since users read them."""

from __future__ import annotations

import subprocess
import sys
from itertools import cycle

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import OmegaConf

from llmmod.config.compose import compose_config, to_root
from llmmod.config.schema.steps import Root
from llmmod.config.validate import validated
from llmmod.config.wording import conf_directory, groups
from llmmod.errors import ConfigError
from llmmod.files.lock import holding

MODELS = ", ".join(sorted(f.stem for f in (conf_directory() / "model").glob("*.yaml")))

REFUSED = {
    "misspelt key": ("training.learning_ratee=1", "training.learning_ratee: no such field. Did you mean 'learning_rate'?"),
    "misspelt key deeper": ("model.quantization.bit=4", "model.quantization.bit: no such field. Did you mean 'bits'?"),
    "misspelt part above": ("model.rope_scalin.x=1", "model.rope_scalin.x: model.rope_scalin does not exist. Did you mean 'rope_scaling'?"),
    "misspelt step": ("steps.prdict.batch_size=3", "steps.prdict.batch_size: steps.prdict does not exist. Did you mean 'predict'?"),
    "misspelt option": ("model=chatglm22", "model=chatglm22: no such option. Did you mean 'chatglm2'?"),
    "option with nothing near": ("model=zzz", f"model=zzz: no such option. Allowed: {MODELS}."),
    "misspelt group": ("modle=chatglm2", "modle: no such key or group. Did you mean 'model'?"),
    "key without its part": ("learning_rate=1", "learning_rate: no such key or group. Did you mean 'training.learning_rate'?"),
    "key in the wrong part": ("dataset.learning_rate=1", "dataset.learning_rate: no such field. Did you mean 'training.learning_rate'?"),
    "another option's key": (
        "steps.predict.max_shard_size=5GB",
        "steps.predict.max_shard_size: no such field with step=predict. It belongs to step=export.",
    ),
    "wrong type, number": ("training.num_train_epochs=abc", "training.num_train_epochs: found 'abc'. Expected a number."),
    "wrong type, whole number": ("seed=x", "seed: found 'x'. Expected a whole number."),
    "whole number with an exponent": ("dataset.cutoff_len=1e3", "dataset.cutoff_len: found 1000.0. Expected a whole number. Write 1000."),
    "wrong type, flag": ("smoke=yess", "smoke: found 'yess'. Expected true or false."),
    "wrong type, optional": ("model.quantization.bits=four", "model.quantization.bits: found 'four'. Expected a whole number, or null."),
    "wrong type, list": ("pipeline=train", "pipeline: found 'train'. Expected a list, written [a,b]."),
    "wrong type, mapping": ("model.sizes=3", "model.sizes: found 3. Expected keys with values, written {a: 1}."),
    "wrong type, part": ("dataset.columns=foo", "dataset.columns: found 'foo'. Expected keys with values, written {a: 1}."),
    "wrong type, text": ("dataset.columns.prompt=[a]", "dataset.columns.prompt: found ['a']. Expected a text, or null."),
    "null where there must be a value": ("training.num_train_epochs=null", "training.num_train_epochs: found null. Expected a number."),
    "outside an enum": (
        "dataset.cutoff_policy=rigt",
        "dataset.cutoff_policy: found 'rigt'. Did you mean 'right'? Allowed: proportional, right, left, drop.",
    ),
    "key below a value": ("finetune.r.x=3", "finetune.r.x: finetune.r is a single value without keys."),
    "value for a whole part": ("training=3", "training: found 3. Expected keys with values. Choose an option: stage=…."),
    "new key in a free mapping": ("model.config.x=3", "model.config.x: no such field. To add a new one, write +model.config.x=…."),
    "key of an inherited part": (
        "steps.evaluate.dataset.val_size=3",
        "steps.evaluate.dataset.val_size: steps.evaluate.dataset is null, so the step uses the root's, which can't be set here. "
        "Choose one for this step: +dataset@steps.evaluate.dataset=….",
    ),
    "plus on a key that exists": ("+training.learning_rate=3", "+training.learning_rate: exists already. Leave out the +."),
    "plus on a chosen group": ("+model=qwen", "+model=qwen: an option of this group is chosen already. Leave out the +."),
    "taking out a field": (
        "~training.learning_rate",
        "~training.learning_rate: can't be removed. Set training.learning_rate=null to give it no value.",
    ),
    "taking out a field that doesn't exist": ("~training.xy", "~training.xy: does not exist, so it can't be removed."),
    "a group that isn't in the list": (
        "quantization=nf4",
        "quantization=nf4: an option of this group is not chosen yet. To add one, write +quantization@model.quantization=nf4.",
    ),
    "a group in a wrong place": ("render@foo=chatml", "render@foo=chatml: this group has no such place. Did you mean to override render?"),
    "a place for a key that is not a group": ("a.b@c=d", "a.b@c=d: 'a.b' is not a group."),
    "null for an option": ("model=null", f"model=null: no such option. Allowed: {MODELS}."),
    "list not closed": (
        "pipeline=[train",
        "pipeline=[train: can't be read: '[' is not closed. Quote the whole override for your shell: 'key=[a,b]'.",
    ),
    "quote not closed": ("output_dir='x", "output_dir='x: can't be read: a quote is not closed."),
    "not an override": ("chatglm2", "chatglm2: is not an override. Write key=value or group=option."),
    "no key": ("=3", "=3: doesn't name a key. Write key=value or group=option."),
    "grammar": ("output_dir=a==b", "output_dir=a==b: can't be read: unexpected =. Quote the value: 'key=\"value\"'."),
    "values of a sweep": (
        "training.learning_rate=1,2",
        "training.learning_rate: several values: 1,2. Add -m for a sweep, or write [1,2] for a list.",
    ),
    "Hydra's own key": ("hydra.run.dirr=3", "hydra.run.dirr: no such field. Did you mean 'dir'?"),
    "Hydra's own option": ("hydra/output=none", "hydra/output=none: no such option. Allowed: default."),
    "search path": ("hydra.searchpath=[/not/there]", "/not/there: this directory of options does not exist."),
}


# These are composed one by one. The others are composed together, which is quicker and shows that none hides another.
ALONE = [name for name, (override, _) in REFUSED.items() if override.startswith(("model=", "+model", "quantization", "render@", "hydra"))]


@pytest.fixture(scope="module")
def at_once():
    names = [name for name in REFUSED if name not in ALONE]
    with pytest.raises(ConfigError) as error:
        compose_config([REFUSED[name][0] for name in names])
    assert len(error.value.problems) == len(names)
    return dict(zip(names, map(str, error.value.problems), strict=True))


@pytest.mark.parametrize("name", [name for name in REFUSED if name not in ALONE])
def test_wrong_overrides(at_once, name):
    assert at_once[name] == REFUSED[name][1]


@pytest.mark.parametrize("name", ALONE)
def test_wrong_choices(name):
    override, message = REFUSED[name]
    with pytest.raises(ConfigError) as error:
        compose_config([override])
    assert str(error.value) == message
    assert error.value.exit_code == 2


def test_a_key_of_another_option_names_that_option():
    with pytest.raises(ConfigError) as error:
        compose_config(["finetune=full", "finetune.r=8"])
    assert str(error.value) == "finetune.r: no such field with finetune=full. It belongs to finetune=lora, qlora."


def test_every_wrong_override_is_reported_in_the_order_typed():
    with pytest.raises(ConfigError) as error:
        compose_config(["finetune.lora_alpah=3", "model=chatglm22", "seed=1", "seed=x", "pipeline=[a", "modle=y", "+experiment=nope"])
    assert str(error.value).splitlines() == [
        "finetune.lora_alpah: no such field. Did you mean 'lora_alpha'?",
        "model=chatglm22: no such option. Did you mean 'chatglm2'?",
        "seed: found 'x'. Expected a whole number.",
        "pipeline=[a: can't be read: '[' is not closed. Quote the whole override for your shell: 'key=[a,b]'.",
        "modle: no such key or group. Did you mean 'model'?",
        *[str(p) for p in error.value.problems[5:]],
    ]
    assert error.value.problems[5].key == "+experiment=nope"


def test_keys_of_a_group_with_a_wrong_option_are_not_reported():
    with pytest.raises(ConfigError) as error:
        compose_config(["stage=sftt", "training.no_such=1"])
    assert [p.key for p in error.value.problems] == ["stage=sftt"]


class TestConfigDir:
    def test_options_of_the_users_own(self, tmp_path):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "mine.yaml").write_text("defaults: [/schema/model@_here_, _self_]\nname: mine\n")
        composed = compose_config(["model=mine"], config_dir=str(tmp_path))
        assert composed.config.model.name == "mine"
        assert composed.choices["model"] == "mine"

    def test_a_shipped_option_s_name(self, tmp_path):
        (tmp_path / "model").mkdir()
        file = tmp_path / "model" / "llama.yaml"
        file.write_text("name: mine\n")
        with pytest.raises(ConfigError) as error:
            compose_config(["model=llama"], config_dir=str(tmp_path))
        assert str(error.value) == (
            f"{file}: hidden by the shipped option model/llama, which Hydra reads instead. "
            "Rename it, e.g. to my_llama.yaml, and choose it by that name."
        )

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("nam: x", "model.nam: no such field. Did you mean 'name'? It is in model/mine."),
            ("print_structure: 2x", "model.print_structure: found '2x'. Expected true or false. It is in model/mine."),
            ("weights: rand", "model.weights: found 'rand'. Did you mean 'random'? Allowed: pretrained, random. It is in model/mine."),
        ],
        ids=["key", "type", "enum"],
    )
    def test_a_wrong_file(self, tmp_path, text, message):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "mine.yaml").write_text(f"defaults: [/schema/model@_here_, _self_]\n{text}\n")
        with pytest.raises(ConfigError) as error:
            compose_config(["model=mine", "seed=x"], config_dir=str(tmp_path))
        assert str(error.value).splitlines()[0].startswith(message)
        assert error.value.problems[1].key == "seed"

    def test_a_file_that_is_not_yaml(self, tmp_path):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "mine.yaml").write_text("name: [a\n")
        with pytest.raises(ConfigError, match=r"model/mine.yaml, line 2: is not valid YAML: "):
            compose_config(["model=mine"], config_dir=str(tmp_path))

    def test_a_file_that_is_not_utf_8(self, tmp_path):
        (tmp_path / "render").mkdir()
        (tmp_path / "render" / "mine.yaml").write_bytes(b"# @package render\nname: x\nsystem: be \xff\n")
        with pytest.raises(ConfigError, match=r"--config-dir: not UTF-8 text: byte 0xff can't be read, in 'system: be .xff'"):
            compose_config(["render=mine"], config_dir=str(tmp_path))

    def test_a_default_that_does_not_exist(self, tmp_path):
        (tmp_path / "experiment").mkdir()
        (tmp_path / "experiment" / "e.yaml").write_text("# @package _global_\ndefaults:\n  - override /model: chatglm22\n")
        with pytest.raises(ConfigError, match=r"model=chatglm22: no such option. Did you mean 'chatglm2'[?]"):
            compose_config(["experiment=e"], config_dir=str(tmp_path))

    def test_an_override_of_a_group_that_does_not_exist(self, tmp_path):
        (tmp_path / "experiment").mkdir()
        (tmp_path / "experiment" / "e.yaml").write_text("# @package _global_\ndefaults:\n  - override /modle: llama\n")
        message = "override modle: no such group. Did you mean 'model'? It is in experiment/e.yaml."
        with pytest.raises(ConfigError) as error:
            compose_config(["experiment=e"], config_dir=str(tmp_path))
        assert str(error.value) == message

    def test_a_list_for_a_file(self, tmp_path):
        (tmp_path / "experiment").mkdir()
        (tmp_path / "experiment" / "e.yaml").write_text("# @package _global_\n- a\n")
        with pytest.raises(ConfigError, match=r"experiment/e.yaml: Cannot merge DictConfig with ListConfig."):
            compose_config(["experiment=e"], config_dir=str(tmp_path))

    def test_no_such_directory(self, tmp_path):
        with pytest.raises(ConfigError, match="this directory of options does not exist"):
            compose_config([], config_dir=str(tmp_path / "nope"))

    def test_a_main_configuration_of_the_users_own(self, tmp_path):
        (tmp_path / "mine.yaml").write_text("defaults: [config, _self_]\nseed: 7\n")
        assert compose_config([], config_dir=str(tmp_path), config_name="mine").config.seed == 7
        with pytest.raises(ConfigError, match="--config-name: 'mien' is not a configuration"):
            compose_config([], config_dir=str(tmp_path), config_name="mien")

    def test_a_main_configuration_imports_no_package(self, tmp_path, monkeypatch):
        (tmp_path / "evil_package").mkdir()
        (tmp_path / "evil_package" / "__init__.py").write_text("import pathlib\npathlib.Path(__file__).with_name('imported').touch()\n")
        (tmp_path / "conf").mkdir()
        text = "defaults: [config, _self_]\nhydra:\n  searchpath: [pkg://evil_package]\n"
        (tmp_path / "conf" / "mine.yaml").write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(ConfigError, match=r"hydra.searchpath: 'evil_package' may not be imported. If you trust it, add --allow"):
            compose_config([], config_dir=str(tmp_path / "conf"), config_name="mine")
        assert not (tmp_path / "evil_package" / "imported").exists()


class TestComposed:
    def test_hydra_s_node_is_separate(self):
        assert "hydra" not in compose_config([]).config
        assert compose_config([]).hydra is None
        composed = compose_config(["seed=3", "hydra.verbose=true"], with_hydra=True, job_num=4)
        assert "hydra" not in composed.config
        assert composed.hydra.job.num == 4
        assert composed.hydra.run.dir == composed.config.output_dir
        assert composed.hydra.overrides.task == ["seed=3"]
        assert composed.hydra.overrides.hydra == ["hydra.verbose=true"]

    def test_what_the_user_set(self):
        composed = compose_config(["model=llama", "training.learning_rate=1e-3", "dataset.columns={prompt: p, query: q}"])
        assert composed.user_keys == ["training.learning_rate", "dataset.columns.prompt", "dataset.columns.query"]
        assert composed.overrides[0] == "model=llama"
        assert composed.choices["model"] == "llama"

    def test_it_is_what_hydra_composes(self):
        from hydra import compose, initialize_config_module

        overrides = ["model=llama", "finetune=qlora", "training.learning_rate=1e-3", "+model.kwargs.x=1", "dataset.val_size=3"]
        with initialize_config_module("llmmod.conf", version_base="1.3"):
            theirs = compose("config", overrides)
        assert OmegaConf.to_container(compose_config(overrides).config) == OmegaConf.to_container(theirs)

    def test_hydra_s_global_state_is_left_alone(self):
        from hydra.core.global_hydra import GlobalHydra

        before = GlobalHydra.instance().is_initialized()
        compose_config([])
        assert GlobalHydra.instance().is_initialized() == before


class TestToRoot:
    def test_plain_python_comes_out(self):
        root = to_root(compose_config(["finetune=lora", "finetune.r=4"]).config)
        assert isinstance(root, Root)
        assert root.finetune.r == 4
        assert type(root.pipeline) is list
        assert type(root.model.architecture) is dict
        assert root.steps["train"]._target_ == "llmmod.steps.train.Train"

    def test_what_is_not_set(self):
        with pytest.raises(ConfigError) as error:
            to_root(compose_config(["dataset.name=???", "output_dir=${nope}", "+model.kwargs.x=${oc.env:NO_SUCH_VARIABLE}"]).config)
        told = str(error.value).splitlines()
        assert told[0].startswith("model.kwargs.x: '${oc.env:NO_SUCH_VARIABLE}' can't be resolved: ")
        assert told[1:] == ["dataset.name: is not set. Set it: dataset.name=….", "output_dir: '${nope}' refers to a missing key."]

    def test_a_config_that_llmmod_did_not_compose(self):
        with pytest.raises(ConfigError, match="config: was not composed by llmmod"):
            to_root(OmegaConf.create({"a": 1}))


def choices():
    """Sets of overrides, each with at most one option of a group, that together choose every option of every group."""
    options = {group: [f.stem for f in sorted((conf_directory() / group).glob("*.yaml"))] for group in groups()}
    del options["step"]  # each is in the main defaults list
    alone = [["finetune=qlora", f"quantization@model.quantization={name}"] for name in options.pop("quantization")]
    alone += [[f"experiment={name}"] for name in options.pop("experiment", [])]
    # Sharded models can't be sampled from: ppo and grpo refuse these.
    alone += [["stage=sft", f"distributed={name}"] for name in ("fsdp", "deepspeed_zero3")]
    options["distributed"] = [name for name in options["distributed"] if name not in ("fsdp", "deepspeed_zero3")]
    # Each dataset gets a stage that reads its rows; datasets of any kind get the remaining stages in turn.
    fitting = {"llmmod_judged": "kto", "llmmod_pairs": "rm", "llmmod_prompts": "ppo", "llmmod_qa": "sft", "llmmod_text": "pt"}
    rest = cycle(sorted(set(options["stage"]) - set(fitting.values())))
    options["stage"] = [fitting.get(name) or next(rest) for name in options["dataset"]]
    lines = {group: [f"{group}={name}" for name in names] for group, names in options.items()}
    most = max(map(len, lines.values()))
    return alone + [[of_group[turn % len(of_group)] for of_group in lines.values() if of_group] for turn in range(most)]


# Options that need a path or a file from the user, and what the test gives them.
POINTED = {
    "dataset=json": ["dataset.data_files=pkg://llmmod.demo/llmmod_qa.jsonl", "dataset.val_size=2"],
    "model=auto": ["model.pretrained_model_name_or_path=org/name"],
    "dataset=hub": ["dataset.path=org/name", "dataset.val_size=2"],
}


@pytest.mark.parametrize("overrides", choices(), ids=" ".join)
def test_every_option_composes_and_is_right(overrides, monkeypatch):
    monkeypatch.setattr("llmmod.config.validate.pipeline.find_module", lambda name: True)  # deepspeed may be missing
    pointed = [more for override in overrides for more in POINTED.get(override, [])]
    assert isinstance(to_root(validated(compose_config([*overrides, *pointed, "smoke=true"]))), Root)


@pytest.mark.parametrize("file", [f for group in groups() for f in sorted((conf_directory() / group).glob("*.yaml"))], ids=lambda f: f.stem)
def test_every_file_starts_with_the_command_that_uses_it(file):
    first = next(line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package"))
    assert first.startswith("# llmmod ")


def test_composing_and_refusing_import_no_torch():
    code = """
import sys
from itertools import cycle
from llmmod.errors import ConfigError
from llmmod.config.compose import compose_config, to_root
from llmmod.config.validate import validated
to_root(validated(compose_config(["model=llama", "finetune=lora"], with_hydra=True)))
for wrong in (["training.learning_ratee=1"], ["model=x"], ["training.learning_rate=-1"]):
    try:
        validated(compose_config(wrong))
    except ConfigError:
        pass
heavy = {"torch", "transformers", "datasets", "trl", "peft", "accelerate", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


class TestFromMemory:
    """A second composition of the same options in one process."""

    def test_it_is_equal_and_shares_nothing_with_the_first(self, tmp_path, monkeypatch):
        chosen = ["stage=dpo", "finetune=qlora"]
        first = compose_config([*chosen, "training.beta=0.3"], with_hydra=True)
        monkeypatch.chdir(tmp_path)
        second = compose_config([*chosen, "training.beta=0.3"], with_hydra=True)
        assert second.config == first.config
        assert to_root(second.config) == to_root(first.config)
        assert OmegaConf.get_type(second.config.training) is OmegaConf.get_type(first.config.training)
        assert second.hydra.runtime.cwd == str(tmp_path)
        first.config.training.beta = 9.0
        assert second.config.training.beta == 0.3
        assert compose_config(chosen).config.training.beta != 9.0

    def test_while_a_run_holds_its_directory_nothing_is_composed_anew(self, tmp_path, monkeypatch):
        first = compose_config(["finetune=freeze"])
        monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", lambda *_, **__: pytest.fail("composed anew"))
        with holding(tmp_path, command=[]):
            assert compose_config(["finetune=freeze"]).config == first.config

    def test_another_environment_gives_other_defaults(self, monkeypatch):
        assert compose_config([]).config.model.trust_remote_code is False
        monkeypatch.setenv("LLMMOD_TRUST_REMOTE_CODE", "1")
        assert compose_config([]).config.model.trust_remote_code is True

    def test_a_file_that_changed_is_read_again(self, tmp_path):
        option = tmp_path / "dataset" / "mine.yaml"
        option.parent.mkdir()
        found = []
        for limit in (100, 2000):
            option.write_text(f"defaults: [/schema/dataset@_here_, _self_]\nname: mine\npath: llmmod_qa\ncutoff_len: {limit}\n")
            found.append(compose_config(["dataset=mine"], config_dir=str(tmp_path)).config.dataset.cutoff_len)
        assert found == [100, 2000]
