"""`model.quantization.*`: bitsandbytes' quantization of frozen weights, as arguments of transformers.BitsAndBytesConfig.

That class has no annotations, so this table is kept by hand. It has a default type (fp4) and a default for the constants (not quantized
again) from before the paper; the defaults here are the paper's (Dettmers et al. 2023, QLoRA).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from llmmod.config.schema.base import Dtype, Table


@dataclass
class QuantizationConf:
    """The quantization of linear layers' weights; names are those of BitsAndBytesConfig without prefixes."""

    CHOICES: ClassVar[Table] = {
        "type": ("nf4", "fp4"),
        "quant_storage": ("uint8", "int8", "float16", "bfloat16", "float32", "float64"),
    }

    bits: int | None = None  # bits per weight: 4 or 8; None: the weights are not quantized
    type: str = "nf4"  # the 4-bit type: nf4 or fp4
    double_quant: bool = True  # quantize the quantization constants too, for 4 bit
    compute_dtype: Dtype = Dtype.auto  # the dtype of the matrix products; auto: bfloat16 if the device supports it, else float32
    quant_storage: str = "uint8"  # the dtype of the tensors with packed 4-bit weights; FSDP needs the dtype of the other weights
    llm_int8_threshold: float = 6.0  # activations beyond this are multiplied in 16 bit, for 8 bit (Dettmers et al. 2022)
    llm_int8_has_fp16_weight: bool = False  # keep 16-bit weights as well, for 8 bit
    llm_int8_skip_modules: list[str] | None = None  # modules that are not quantized, for 4 bit too; None: the output layer
    llm_int8_enable_fp32_cpu_offload: bool = False  # let device_map put a part of the model on the CPU, in float32, for 4 bit too


def bitsandbytes_arguments(conf: QuantizationConf, *, compute_dtype: str) -> dict[str, Any]:
    """The arguments of transformers.BitsAndBytesConfig, all of them; for `bits` of 4 or 8.

    Args:
        conf: as composed.
        compute_dtype: name of a torch dtype, `conf.compute_dtype` once `auto` is decided.
    """
    return {
        "load_in_4bit": conf.bits == 4,
        "load_in_8bit": conf.bits == 8,
        "bnb_4bit_quant_type": conf.type,
        "bnb_4bit_use_double_quant": conf.double_quant,
        "bnb_4bit_compute_dtype": compute_dtype,
        "bnb_4bit_quant_storage": conf.quant_storage,
        "llm_int8_threshold": conf.llm_int8_threshold,
        "llm_int8_has_fp16_weight": conf.llm_int8_has_fp16_weight,
        "llm_int8_skip_modules": conf.llm_int8_skip_modules,
        "llm_int8_enable_fp32_cpu_offload": conf.llm_int8_enable_fp32_cpu_offload,
    }


def decides_weights(conf: QuantizationConf) -> dict[str, Any] | None:
    """The fields that affect a checkpoint's quantized weights, as JSON values; None without quantization.

    The dtypes of computation and storage and the placement are left out, since they differ between machines.
    """
    if conf.bits is None:
        return None
    own = ("type", "double_quant") if conf.bits == 4 else ("llm_int8_threshold",)
    found = {name: getattr(conf, name) for name in ("bits", *own, "llm_int8_skip_modules")}
    return {name: list(value) if name == "llm_int8_skip_modules" and value else value for name, value in found.items()}
