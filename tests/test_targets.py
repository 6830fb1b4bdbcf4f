"""The paths that a configuration may name, checked by their text."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llmmod.targets import allowed_prefixes, check_prefixes, check_targets, refusal


def names(text):
    return text.split()


REFUSED = names(
    """
builtins.open builtins.eval builtins.getattr builtins.__import__ pathlib.Path.write_text multiprocessing.Process logging.os.system
os.system posix.system subprocess.Popen subprocess.run shutil.rmtree functools.partial operator.attrgetter importlib.import_module
runpy.run_path pickle.loads _pickle.loads dill.loads cloudpickle.loads joblib.load multiprocess.Process code.interact pty.spawn
ctypes.CDLL numpy.load pandas.read_pickle yaml.unsafe_load pydoc.locate hydra.utils.instantiate hydra._internal.utils._locate
omegaconf.OmegaConf.load torch.load torch.save torch.serialization.load torch.hub.load torch.hub.load_state_dict_from_url torch.jit.load
torch.jit.script torch.package.PackageImporter torch.package.package_importer.PackageImporter torch.ops.load_library
torch.classes.load_library torch.multiprocessing.Process torch.multiprocessing.spawn torch.distributed.run.main
torch.distributed.launch.main torch.distributed.rpc.rpc_sync torch.utils.cpp_extension.load torch.utils.cpp_extension.load_inline
torch.utils.benchmark.Timer torch.utils.collect_env.run torch.utils.data.datapipes.utils.decoder.basichandlers torch.fx.GraphModule
torch.export.load torch.compile torch.os.system torch.sys.exit torch._C._jit_set_profiling_mode torch._inductor.compile
torch.nn.Linear.__init__ torch.nn.Linear.__subclasses__ transformers.utils.os.system transformers.trainer.os.system
transformers.dynamic_module_utils.get_class_from_dynamic_module transformers.testing_utils.execute_subprocess_async
transformers.cli.transformers.main transformers.utils.hub.cached_file transformers.pipelines.pipeline
transformers.models.rag.RagRetriever transformers.models.llama.subprocess.Popen accelerate.commands.launch.main
accelerate.utils.launch.prepare_simple_launcher_cmd_env accelerate.notebook_launcher accelerate.debug_launcher
accelerate.launchers.notebook_launcher accelerate.test_utils.testing.execute_subprocess_async accelerate.utils.environment.get_gpu_info
accelerate.utils.load accelerate.utils.save datasets.commands.datasets_cli.main datasets.Dataset.from_sql
datasets.packaged_modules.pandas.pandas.Pandas datasets.utils.py_utils.Pickler trl.scripts.sft.main trl.scripts.utils.TrlParser
trl.cli.main.main trl.extras.vllm_client.VLLMClient trl.experimental.openreward.OpenRewardEnv llmmod.app.main llmmod.instantiate.locate
llmmod.instantiate.build llmmod.pipeline.run.run_pipeline llmmod.run llmmod.config.compose.compose_config
llmmod.targets.refusal llmmod.models.loading.load._private llmmod.models.loading.load.os.system
my_package.Thing my_package._Thing open __main__.x
    """
)

ALLOWED = names(
    """
llmmod.models.loading.load.load_model llmmod.models.adapters.reward_models.load_reward_model llmmod.steps.train.Train
llmmod.trainers.sft.SftTrainer llmmod.metrics.Rouge
llmmod.render.template.Template llmmod.data.dataset.load.load_splits torch.nn.Linear torch.nn.functional.gelu torch.optim.AdamW
torch.utils.data.SequentialSampler transformers.AutoModelForCausalLM.from_pretrained transformers.EarlyStoppingCallback
transformers.Trainer transformers.Seq2SeqTrainingArguments transformers.utils.logging.X trl.SFTTrainer trl.rewards.accuracy_reward
peft.LoraConfig peft.PeftModel.from_pretrained datasets.load_dataset accelerate.Accelerator
    """
)


@pytest.mark.parametrize("path", REFUSED)
def test_refused(path):
    assert refusal(path)


@pytest.mark.parametrize("path", ALLOWED)
def test_allowed(path):
    assert refusal(path) == ""


@pytest.mark.parametrize(
    "path",
    ["", None, 3, ["torch.nn.Linear"], "torch", "torch.", ".torch", "torch..nn", "torch.nn.Linear()", "torch.nn.ｌin", "${x}.y", "a b.c"],
)
def test_what_is_no_dotted_path_is_refused(path):
    assert refusal(path)


def test_the_user_allows_a_module_in_the_environment(monkeypatch):
    assert refusal("my_package.rewards.Length") == "a configuration must not name 'my_package.rewards.Length'"
    monkeypatch.setenv("LLMMOD_ALLOW", "my_package.rewards, other")
    assert allowed_prefixes() == ("my_package.rewards", "other")
    assert refusal("my_package.rewards.Length") == ""
    assert refusal("other.x") == ""
    assert refusal("my_package.rewards_evil.X")
    assert refusal("my_package.other.X")
    assert refusal("my_package.rewards._X")


@pytest.mark.parametrize(
    "prefix",
    ["os", "subprocess", "builtins", "pickle", "dill", "hydra", "torch", "transformers", "torch.hub", "llmmod.pipeline", "a b", "../x"],
)
def test_what_the_user_can_not_allow(monkeypatch, prefix):
    monkeypatch.setenv("LLMMOD_ALLOW", prefix)
    assert allowed_prefixes() == ()
    assert [p.key for p in check_prefixes()] == [f"LLMMOD_ALLOW={prefix}"]


def test_the_message_says_how_to_allow(monkeypatch):
    assert [str(p) for p in check_targets({"training": {"trainer": {"_target_": "mine.Trainer"}}})] == [
        "training.trainer._target_: a configuration must not name 'mine.Trainer'. "
        "Allowed: components of llmmod, torch, transformers, trl, peft, datasets, accelerate. "
        "If you trust that module, add --allow mine, or set LLMMOD_ALLOW=mine."
    ]
    assert "--allow" not in str(check_targets({"_target_": "os.system"})[0])


def test_targets_are_found_however_deep():
    tree = {
        "_target_": "os.a",
        "model": {"kwargs": {"x": [{"y": {"_target_": "os.b"}}, [{"_target_": "os.c"}]]}},
        "steps": {"train": {"_target_": "llmmod.steps.train.Train"}, "mine": {"_target_": "???"}},
    }
    assert [p.key for p in check_targets(tree)] == ["_target_", "model.kwargs.x.0.y._target_", "model.kwargs.x.1.0._target_"]
    assert [p.key for p in check_targets(tree["model"], "model")] == ["model.kwargs.x.0.y._target_", "model.kwargs.x.1.0._target_"]


HYDRA = [
    ({"callbacks": {"c": {"_target_": "os.system", "command": "id"}}}, "hydra.callbacks.c._target_"),
    ({"launcher": {"_target_": "subprocess.Popen"}}, "hydra.launcher._target_"),
    ({"sweeper": {"_target_": "hydra.utils.instantiate"}}, "hydra.sweeper._target_"),
    ({"sweeper": {"sampler": {"_target_": "os.x"}}}, "hydra.sweeper.sampler._target_"),
    # Hydra itself would build these, and it doesn't refuse torch.load.
    ({"callbacks": {"d": {"_target_": "torch.nn.functional.torch.load", "f": "x.pkl"}}}, "hydra.callbacks.d._target_"),
    ({"launcher": {"_target_": "hydra_plugins.no_such_plugin.Launcher"}}, "hydra.launcher._target_"),
    ({"callbacks": {"e": {"_target_": "llmmod.models.loading.load.load_model"}}}, "hydra.callbacks.e._target_"),
    ({"job_logging": {"handlers": {"h": {"()": "os.system", "command": "id"}}}}, "hydra.job_logging.handlers.h.()"),
    ({"job_logging": {"handlers": {"h": {"class": "subprocess.Popen"}}}}, "hydra.job_logging.handlers.h.class"),
    ({"hydra_logging": {"filters": {"f": {"()": "pty.spawn"}}}}, "hydra.hydra_logging.filters.f.()"),
    ({"hydra_logging": {"formatters": {"f": {"x": ["ext://os.system"]}}}}, "hydra.hydra_logging.formatters.f.x.0"),
    ({"job_logging": {"handlers": {"h": {"class": "logging.handlers.SocketHandler"}}}}, "hydra.job_logging.handlers.h.class"),
    ({"job": {"env_set": {"LLMMOD_ALLOW": "evil"}}}, "hydra.job.env_set.LLMMOD_ALLOW"),
    ({"job": {"env_set": {"PYTHONPATH": "/x"}}}, "hydra.job.env_set.PYTHONPATH"),
    ({"job": {"env_set": {"LD_PRELOAD": "/x.so"}}}, "hydra.job.env_set.LD_PRELOAD"),
    ({"job": {"env_set": {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}}}, "hydra.job.env_set.TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"),
    ({"job": {"env_set": {"CC": "/x"}}}, "hydra.job.env_set.CC"),
    ({"job_logging": {"handlers": {"file": {"filename": "/home/me/.bashrc"}}}}, "hydra.job_logging.handlers.file.filename"),
    ({"job_logging": {"handlers": {"h": {"filename": "${hydra.runtime.output_dir}/../x"}}}}, "hydra.job_logging.handlers.h.filename"),
]


@pytest.mark.parametrize(("node", "key"), HYDRA, ids=[key for _, key in HYDRA])
def test_the_hydra_node_is_checked_too(node, key):
    assert [p.key for p in check_targets({"hydra": node})] == [key]
    assert [p.key for p in check_targets(node, "hydra")] == [key]


def test_hydra_s_own_node_passes():
    node = {
        "launcher": {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"},
        "sweeper": {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"},
        "job_logging": {
            "handlers": {
                "console": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"},
                "file": {"class": "logging.FileHandler", "filename": "${hydra.runtime.output_dir}/${hydra.job.name}.log"},
            }
        },
        "job": {"env_set": {"HF_HUB_OFFLINE": "1"}},
    }
    assert check_targets({"hydra": node}) == []
    assert check_targets({"training": {"trainer": node["launcher"]}}) != []  # in other places it isn't a component


def test_the_check_imports_nothing_of_what_it_judges():
    code = f"""
import sys
from llmmod.targets import check_targets
check_targets([{{"_target_": p}} for p in {REFUSED + ALLOWED!r}])
heavy = {{"torch", "transformers", "trl", "peft", "datasets", "accelerate", "numpy", "hydra"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
