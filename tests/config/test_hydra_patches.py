"""The patches return the same as Hydra's own code."""

from __future__ import annotations

import copy
import io

import hydra
import pytest
import yaml
from hydra import compose, initialize_config_dir, initialize_config_module
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf
from omegaconf import _utils as omegaconf_internals
from omegaconf.base import Box, Metadata

from llmmod.config import register
from llmmod.config.register import register_schemas
from llmmod.config.schema.model import LoraConf


@pytest.fixture
def unpatched(monkeypatch):
    """A function that removes the patches for the rest of the test; the store may remain patched."""

    def restore(*, store: bool = True) -> None:
        monkeypatch.setattr(defaults_list, "_create_interpolation_map", register._interpolation_map)
        monkeypatch.setattr(ConfigLoaderImpl, "get_group_options", register._group_options)
        monkeypatch.setattr(Box, "_re_parent", register._re_parent)
        monkeypatch.setattr(omegaconf_internals, "get_yaml_loader", register._pure_yaml_loader)
        monkeypatch.setattr(DictConfig, "_set_value_impl", register._set_value)
        monkeypatch.setattr(Hydra, "get_help", register._get_help)
        monkeypatch.setattr(ConfigRepository, "load_config", register._load_config)
        monkeypatch.delattr(Metadata, "__deepcopy__")
        if store:
            monkeypatch.delitem(vars(ConfigStore.instance()), "__deepcopy__")

    register_schemas()
    return restore


def test_this_is_the_version_that_is_patched(unpatched):
    assert hydra.__version__ == "1.3.8"
    assert defaults_list._create_interpolation_map is register._interpolation_map_if_needed
    unpatched()
    assert copy.deepcopy(ConfigStore.instance()) is not ConfigStore.instance()


def composed(overrides):
    with initialize_config_module("llmmod.conf", version_base="1.3"):
        return OmegaConf.to_yaml(compose("config", overrides=[*overrides, "output_dir=x"], return_hydra_config=True))


@pytest.mark.parametrize(
    "overrides", [[], ["finetune=qlora", "model=llama2", "training.learning_rate=1"], ["~steps.chat", "+step@steps.x=chat"]]
)
def test_composing_gives_the_same(overrides, unpatched):
    patched = [composed(overrides) for _ in range(3)]  # the third time, files and schemas are not read
    unpatched()
    assert patched == [composed(overrides)] * 3


def test_a_file_that_was_read_before_is_read_again_once_it_changes(tmp_path):
    def found():
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            config = compose("config")
            config.a.b.append(2)  # a copy, which nobody else sees
            return config

    register_schemas()
    for number in (1, 5):
        (tmp_path / "config.yaml").write_text(f"a: {{b: [{number}], c: {number}}}\n")
        assert [found() for _ in range(4)] == [{"a": {"b": [number, 2], "c": number}}] * 4


def test_a_schema_of_the_user_s_own_is_read_again_once_it_changes():
    register_schemas()
    for number in (1, 5):
        ConfigStore.instance().store("of_a_test", {"a": {"b": [number]}})
        try:
            with initialize_config_module("llmmod.conf", version_base="1.3"):
                assert [compose("of_a_test") for _ in range(4)] == [{"a": {"b": [number]}}] * 4
        finally:
            del ConfigStore.instance().repo["of_a_test.yaml"]


def test_a_defaults_list_with_an_interpolation_gives_the_same(tmp_path, unpatched):
    for path, text in {
        "config.yaml": "defaults: [{a: one}, {b: two}, {c: '${a}_${b}'}, _self_]\n",
        "a/one.yaml": "x: 1\n",
        "b/two.yaml": "x: 2\n",
        "c/one_two.yaml": "x: 12\n",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert compose("config") == {"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 12}}


def listed(loader):
    kinds = (ObjectType.CONFIG, ObjectType.GROUP)
    found = {
        (group, kind): loader.get_group_options(group, kind) for group in ("", "model", "schema", "schema/step", "hydra") for kind in kinds
    }
    return found | {"searched": loader.get_group_options("model", config_name="config", overrides=["hydra.searchpath=[pkg://hydra.conf]"])}


def test_listing_gives_the_same_and_follows_another_search_path(unpatched):
    with initialize_config_module("llmmod.conf", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        patched = listed(loader)
        unpatched()
        assert listed(loader) == patched
    assert "smollm2" in patched["model", ObjectType.CONFIG]


def test_the_store_hands_out_copies_of_hydra_s_own_nodes_too(unpatched):
    first = ConfigStore.instance().load("hydra/config.yaml").node
    first.verbose = True
    assert ConfigStore.instance().load("hydra/config.yaml").node.verbose is False


@pytest.mark.parametrize("template", [None, "$FLAGS_HELP\n$CONFIG", "no more than $$CONFIG"])
def test_help_shows_the_values_that_its_template_asks_for(template, unpatched, monkeypatch):
    if template is not None:  # listing all groups once is enough
        monkeypatch.setattr(Hydra, "format_config_groups", lambda *_, **__: "")

    def shown():
        with initialize_config_module("llmmod.conf", version_base="1.3"):
            config = compose("config", overrides=["output_dir=x"], return_hydra_config=True)
            config.hydra.help.template = template or config.hydra.help.template
            hydra = Hydra("task", GlobalHydra.instance().config_loader())
            return hydra.get_help(config.hydra.help, OmegaConf.create({"key": 1}), get_args_parser(), resolve=False)

    ours = shown()
    unpatched(store=template is not None)  # to list all groups, Hydra copies the store 116 times, which takes 16 s
    assert ours == shown()
    assert ("key: 1" in ours) is (template is not None and "FLAGS" in template)


TEXT = "a: [1_000, 1e-4, 2024-01-01, 0x10, yes, 'é', \"\\u00e9\"]\nb: {c: ~, d: 1:30, e: .5}\nf: |\n  x\ng: ${a}\n"


@pytest.mark.parametrize("text", [TEXT, "a: 1\na: 2\n", "a: [1\n", "", "a: !!python/object/apply:os.getcwd []\n"])
def test_libyaml_reads_what_omegaconf_reads(text, unpatched):
    def read():
        try:
            return OmegaConf.create(text) if text else OmegaConf.load(io.StringIO(text))
        except yaml.YAMLError as error:
            return type(error)

    ours = read()
    unpatched()
    assert ours == read()


def test_a_copy_of_a_node_shares_neither_flags_nor_resolved_values(unpatched):
    tree = OmegaConf.create({"a": {"b": 1}})
    tree._metadata.resolver_cache["f"]["x"] = [1]
    copied = copy.deepcopy(tree)
    assert copied._metadata == tree._metadata
    OmegaConf.set_readonly(copied.a, True)
    copied._metadata.resolver_cache["f"]["x"].append(2)
    copied._metadata.resolver_cache["g"]["y"] = 3
    assert tree.a._get_flag("readonly") is None
    assert tree._metadata.resolver_cache == {"f": {"x": [1]}}


def family(node):
    """Each descendant, its parent, and its cache of inherited flags."""
    content = node.__dict__.get("_content")
    for child in content.values() if isinstance(content, dict) else content if isinstance(content, list) else []:
        yield id(child), id(child._get_parent()), child.__dict__["_flags_cache"]
        yield from family(child)


def test_children_get_the_parent_that_omegaconf_would_give_them(unpatched):
    tree = OmegaConf.create({"a": {"b": [{"c": 1}, None, "${a}"]}, "d": None, "e": "???"})
    tree.u = OmegaConf.structured(LoraConf)  # it has a field with a union
    assert tree.a.b[0]._get_flag("readonly") is None  # this fills the cache
    other = OmegaConf.create({})
    tree.a.b._set_parent(other)
    tree.u._get_node("init_lora_weights")._set_parent(other)
    register._children_know_parent(tree)
    ours = list(family(tree))
    tree.a.b._set_parent(other)
    register._re_parent(tree)
    assert ours == list(family(tree))
    union = tree.u._get_node("init_lora_weights")
    assert union._get_parent() is tree.u
    assert union.__dict__["_content"]._get_parent() is union


def test_flags_set_on_a_parent_are_seen_below_after_a_merge():
    tree = OmegaConf.create({"a": {"b": 1}})
    assert tree.a._get_flag("readonly") is None
    OmegaConf.set_readonly(tree, True)
    assert tree.a._get_flag("readonly") is True
    OmegaConf.set_readonly(tree, False)
    tree.merge_with({"a": {"c": 2}})
    assert tree.a._get_flag("readonly") is False


def test_another_version_is_not_patched(unpatched, monkeypatch):
    unpatched()
    monkeypatch.setattr(hydra, "__version__", "1.3.9")
    register.patch_hydra()
    assert defaults_list._create_interpolation_map is register._interpolation_map
    assert "__deepcopy__" not in vars(ConfigStore.instance())
