"""`generation.*`: how answers are generated: every field of transformers.GenerationConfig (5.23).

That class has no annotations, so this table is kept by hand, in the class's own order. None means "not set": the checkpoint's
`generation_config.json` decides, and where that is silent too, the value in brackets. Two fields are left out, that no user sets:
`_from_model_config` and `transformers_version`.
"""

from typing import Any, ClassVar

from llmmod.config.schema.base import Table, wide_dataclass


@wide_dataclass
class GenerationConf:
    """Every field of transformers.GenerationConfig."""

    CHOICES: ClassVar[Table] = {
        "early_stopping": ("never",),
        "cache_implementation": ("dynamic", "static", "offloaded", "offloaded_static", "quantized", "paged"),
        "num_assistant_tokens_schedule": ("constant", "heuristic", "heuristic_transient"),
        "speculation_type": ("dflash",),
        "dola_layers": ("low", "high"),
    }
    ACCEPTED: ClassVar[Table] = {
        "early_stopping": ("bool", "str", "None"),
        "stop_strings": ("str", "list[str]", "None"),
        "forced_eos_token_id": ("int", "list[int]", "None"),
        "eos_token_id": ("int", "list[int]", "None"),
        "decoder_start_token_id": ("int", "list[int]", "None"),
        "dola_layers": ("str", "list[int]", "None"),
        "watermarking_config": ("transformers.WatermarkingConfig", "None"),
        "compile_config": ("transformers.CompileConfig", "None"),
        "continuous_batching_config": ("transformers.ContinuousBatchingConfig", "None"),
    }

    _target_: str = "transformers.GenerationConfig"

    # Length
    max_length: int | None = None  # the maximum length in tokens, with the prompt; better set `max_new_tokens` [20]
    max_new_tokens: int | None = None  # the maximum length of an answer, in tokens
    min_length: int | None = None  # the minimum length in tokens, with the prompt; `min_new_tokens` overrides it [0]
    min_new_tokens: int | None = None  # the minimum length of an answer, in tokens
    # `Any`, because OmegaConf 2.3.1 fails to merge into a typed field of the root whose class has a field with a union
    early_stopping: Any = None  # the end of a beam search: at num_beams answers (true), by a heuristic (false), never early (never) [false]
    max_time: float | None = None  # the maximum time for an answer, in seconds; the current token is finished
    stop_strings: Any = None  # a text or texts that end an answer, in addition to the render's stop words

    # Strategy
    do_sample: bool | None = None  # sample each token; false: take the likeliest [false]
    num_beams: int | None = None  # beams of a beam search; 1: no beam search [1]
    use_mtp: bool | None = None  # predict several tokens at once, if the model can

    # Cache of keys and values
    use_cache: bool | None = None  # keep keys and values from token to token [true]
    cache_implementation: str | None = None  # the kind of cache for keys and values
    cache_config: dict[str, Any] | None = None  # arguments of the cache's class
    max_cache_len: int | None = None  # the size of a static cache, in tokens

    # Which tokens are likely
    temperature: float | None = None  # logits are divided by it: below 1 answers vary less, above 1 more [1.0]
    top_k: int | None = None  # sample only from the k likeliest tokens; 0: from all [50]
    top_p: float | None = None  # sample only from the likeliest tokens whose probabilities add up to this [1.0]
    min_p: float | None = None  # sample only from tokens at least this fraction as likely as the likeliest; 0.01 to 0.2 is usual
    top_h: float | None = None  # the fraction of the distribution's entropy to keep, from 0 to 1
    typical_p: float | None = None  # sample only from the locally most typical tokens that add up to this (Meister et al. 2022) [1.0]
    epsilon_cutoff: float | None = None  # sample only from tokens above this probability; 3e-4 to 9e-4 is usual (Hewitt et al. 2022) [0.0]
    eta_cutoff: float | None = None  # sample only tokens above a bound that follows the entropy, 3e-4 to 2e-3 (Hewitt et al. 2022) [0.0]
    repetition_penalty: float | None = None  # above 1, tokens that occurred before are less likely (Keskar et al. 2019) [1.0]
    encoder_repetition_penalty: float | None = None  # above 1, tokens of the input are likelier [1.0]
    length_penalty: float | None = None  # in a beam search, above 0 favours longer answers, below 0 shorter ones [1.0]
    no_repeat_ngram_size: int | None = None  # runs of this many tokens occur at most once; 0: off [0]
    bad_words_ids: list[list[int]] | None = None  # sequences of token ids that are never generated
    renormalize_logits: bool | None = None  # normalise again after all of the above [false]
    forced_bos_token_id: int | None = None  # the id of the first token
    forced_eos_token_id: Any = None  # the id or ids of the last token if max_length is reached
    remove_invalid_values: bool | None = None  # replace nan and inf among the logits; slower [false]
    # [after this many tokens, factor]: the end of an answer becomes likelier and likelier
    exponential_decay_length_penalty: list[float] | None = None
    suppress_tokens: list[int] | None = None  # token ids that are never generated
    begin_suppress_tokens: list[int] | None = None  # token ids that are never generated first
    sequence_bias: list[Any] | None = None  # [[[ids], bias], …]: added to the logits of those sequences
    token_healing: bool | None = None  # let the prompt's last tokens grow into longer ones [false]
    guidance_scale: float | None = None  # above 1, classifier-free guidance towards the prompt
    watermarking_config: dict[str, Any] | None = None  # marks answers as generated: fields of transformers.WatermarkingConfig

    # What `generate` returns besides ids
    num_return_sequences: int | None = None  # how many answers each prompt gets [1]
    output_attentions: bool | None = None  # return the attention weights of every layer [false]
    output_hidden_states: bool | None = None  # return the hidden states of every layer [false]
    output_scores: bool | None = None  # return the logits after all processing [false]
    output_logits: bool | None = None  # return the logits before all processing [false]
    return_dict_in_generate: bool | None = None  # return an object with all of these instead of ids [false]

    # Special tokens: their defaults are from the render and the tokenizer
    pad_token_id: int | None = None  # the id of the padding token; None: the tokenizer's
    bos_token_id: int | None = None  # the id of the token that begins a text; None: the tokenizer's
    eos_token_id: Any = None  # the id or ids of the tokens that end an answer; None: the render's and the tokenizer's

    # Models with an encoder
    encoder_no_repeat_ngram_size: int | None = None  # runs of this many tokens of the input don't occur in the answer; 0: off [0]
    decoder_start_token_id: Any = None  # the id that a decoder starts with, or one for each example of the batch

    # Speculative decoding
    is_assistant: bool | None = None  # whether this model drafts tokens for another one [false]
    num_assistant_tokens: int | None = None  # how many tokens are drafted at a time [20]
    num_assistant_tokens_schedule: str | None = None  # how that number changes: constant, heuristic, heuristic_transient [constant]
    assistant_confidence_threshold: float | None = None  # a draft ends at a token that is less probable than this [0.4]
    prompt_lookup_num_tokens: int | None = None  # how many tokens are drafted by copying from the prompt
    max_matching_ngram_size: int | None = None  # how many tokens must match before some are copied from the prompt [2]
    assistant_early_exit: int | None = None  # draft with this many of the model's own first layers
    assistant_lookbehind: int | None = None  # the assistant's tokens that are encoded again if the two tokenizers differ [10]
    target_lookbehind: int | None = None  # this model's tokens that are encoded again if the two tokenizers differ [10]
    # accept drafts against a mixture of both models, with this weight from 0 to 1; None: lossless
    assistant_ensemble_weight: float | None = None
    speculation_type: str | None = None  # how tokens are drafted

    # Performance
    compile_config: dict[str, Any] | None = None  # how the forward pass is compiled: {_target_: transformers.CompileConfig, …}
    disable_compile: bool | None = None  # never compile the forward pass [false]
    continuous_batching_config: dict[str, Any] | None = None  # deprecated; transformers has another place for it

    # Of strategies that transformers has moved to the hub, still found in checkpoints
    low_memory: bool | None = None  # compute beams one after another, which needs less memory
    penalty_alpha: float | None = None  # how much contrastive search avoids repetition
    dola_layers: Any = None  # layers whose logits DoLa contrasts: low, high, or their numbers
    diversity_penalty: float | None = None  # the penalty for equal tokens in different groups of beams [0.0]
    num_beam_groups: int | None = None  # groups of beams that differ from each other [1]
    constraints: list[Any] | None = None  # what answers of a constrained beam search must contain
    force_words_ids: list[Any] | None = None  # token ids that answers of a constrained beam search must contain

    prefill_chunk_size: int | None = None  # how many tokens of the prompt are processed at a time
