"""Language models and tokenizers, read whole or refused, and loaded once a process."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto import modeling_auto as auto
from transformers.utils import logging as transformers_logging

from sapo.conf.errors import UserError, WorkError
from sapo.conf.schema import Config, DataConfig, ModelConfig
from sapo.data.render import Rendered, Renderer, rendering
from sapo.experiments.model.budgets import is_out_of_memory
from sapo.experiments.model.fetch import is_random, model_folder
from sapo.experiments.model.identity import device_of, dtype_of, model_identity, template_text, weight_files

_log = logging.getLogger(__name__)


class Untouched(dict[tuple[int, ...], Tensor]):
    """What the untouched model predicts at targets: logits (T, V) by a row's ids, as far as a CPU has room.

    A GPU's memory is for larger batches, and reading again costs it little.
    """

    LIMIT = 2**30  # bytes: eight tasks of 32 rows and 20 target tokens of a vocabulary of 49,000
    taken = 0

    def put(self, row: Rendered, logits: Tensor) -> None:
        """Keeps the logits (T, V) that predict the row's T target tokens, if there is room."""
        if logits.device.type == "cpu" and self.taken + logits.nbytes <= self.LIMIT:
            self[tuple(row.input_ids)] = logits.clone()  # not a part of a batch's whole
            self.taken += logits.nbytes


@dataclass(frozen=True)
class LanguageModel:
    """A loaded base model with its tokenizer (chat template set), on its device, all weights frozen."""

    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: ModelConfig
    untouched: Untouched = field(default_factory=Untouched, repr=False, compare=False)

    def renderer(self, data: DataConfig) -> Renderer:
        """How this model sees examples."""
        return Renderer(self.tokenizer, dict(self.config.template_options), *rendering(data))

    def stop_ids(self) -> Sequence[int]:
        """Tokens that end an answer."""
        return stop_ids(self.base, self.renderer(DataConfig()))


def stop_ids(base: PreTrainedModel, renderer: Renderer) -> Sequence[int]:
    """Tokens that end an answer: the model's, the tokenizer's, and what the template writes after one."""
    configured = base.generation_config.eos_token_id if base.generation_config else None
    ids = configured if isinstance(configured, list) else [configured]
    ends = (*ids, renderer.tokenizer.eos_token_id, renderer.end_of_turn)
    return sorted({token for token in ends if token is not None})


@contextmanager
def _loading(what: str, where: Path) -> Iterator[None]:
    """UserError naming the place in place of what libraries raise when files there are broken."""
    try:
        yield
    except Exception as error:  # the tokenizers library raises nothing narrower
        if is_out_of_memory(error):
            raise WorkError(f"Not enough memory for {what} ({where}).") from error
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"Cannot load {what} from {where}: {type(error).__name__}: {reason}. Replace it by a whole copy."
        ) from error


@contextmanager
def _without_reports() -> Iterator[None]:
    """No progress bar and no table of weights from Transformers: what is wrong is said by us."""
    verbosity, has_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if has_bars:
            transformers_logging.enable_progress_bar()


def read_model(
    model: ModelConfig,
    dtype: str | torch.dtype,
    device: dict[str, torch.device] | str | None = None,
    quantization: BitsAndBytesConfig | None = None,
) -> PreTrainedModel:
    """The model as its files have it; on device `meta`, all of it but the values of its weights.

    Of a `random:` source only the shape is read; weights are drawn, on the device.

    UserError if a file is missing, broken or not safetensors, or if weights are missing, left over or of
    other shapes: those would be drawn at random.
    """
    folder = model_folder(model)
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"Model {model.name}: {folder} holds an adapter, which would load another base model."
        )
    with _loading(f"the config of model {model.name}", folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    _require_causal(config, model.name)
    if quantization and (is_random(model) or getattr(config, "quantization_config", None)):
        reason = "has its weights drawn" if is_random(model) else "is quantized already"
        raise UserError(f"Model {model.name} {reason}: leave out model.load=nf4.")
    if is_random(model):
        place, precision = torch.device(str(device or "cpu")), config.dtype if dtype == "auto" else dtype
        with _loading(f"model {model.name}", folder), torch.random.fork_rng(), place:
            torch.manual_seed(0)
            drawn: Any = AutoModelForCausalLM.from_config(config, dtype=precision)
            return drawn
    for file in weight_files(folder):
        with _loading(f"the weights of model {model.name}", file), safe_open(file, framework="pt"):
            pass  # opening compares the file's length with what its header declares
    with _loading(f"model {model.name}", folder), _without_reports():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            device_map=device,
            quantization_config=quantization,
            trust_remote_code=model.trust_remote_code,
            use_safetensors=True,  # other weight files are pickles, which can run code of whoever wrote them
            ignore_mismatched_sizes=True,  # they are named below
            output_loading_info=True,
        )
    base, found = loaded
    _require_all_weights(base, folder, found)
    return base


def _require_causal(config: PretrainedConfig, name: str) -> None:
    """UserError for a model that does not go on from what it has read: its losses would mean nothing."""
    is_masked = config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if config.is_encoder_decoder:
        does = "reads with an encoder and writes with a decoder"
    elif is_masked and not getattr(config, "is_decoder", False):
        does = "reads in both directions and fills gaps"
    elif type(config) not in auto.MODEL_FOR_CAUSAL_LM_MAPPING and not getattr(config, "auto_map", None):
        does = "writes no text"
    else:
        return
    raise UserError(
        f"Model {name} ({config.model_type}) {does}: sapo trains causal language models, such as Llama, "
        "Qwen, Gemma or GPT-2."
    )


def _require_all_weights(base: PreTrainedModel, folder: Path, found: dict[str, Any]) -> None:
    """UserError unless every weight of the model was in its files, tied ones once, and no other."""
    wrong = []
    for kind in ("missing", "unexpected", "mismatched"):
        if names := sorted(key if isinstance(key, str) else str(key[0]) for key in found[f"{kind}_keys"]):
            rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
            wrong.append(f"{kind} {', '.join(names[:3])}{rest}")
    if wrong:
        raise UserError(
            f"The weights in {folder} are not those of {type(base).__name__}: {'; '.join(wrong)}. "
            "They would be drawn at random. Get a whole copy, or save the model itself and not what wraps it "
            "(torch.compile puts _orig_mod. before every name)."
        )


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer with a chat template; UserError if it has none that can be read."""
    folder = Path(model.tokenizer or model_folder(model))
    with _loading(f"the tokenizer of model {model.name}", folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    if model.chat_template:
        tokenizer.chat_template = template_text(model)
    if not tokenizer.chat_template:
        raise UserError(
            f"Model {model.name}'s tokenizer has no chat template; set model.chat_template=llama2."
        )
    return tokenizer


def load_renderer(config: Config) -> Renderer:
    """How the config's model sees examples; loads its tokenizer only."""
    options = dict(config.model.template_options)
    return Renderer(load_tokenizer(config.model), options, *rendering(config.data))


def require_loadable(config: Config) -> None:
    """UserError where the config's device, or what its way of loading needs, is not there."""
    device = device_of(config)
    if config.model.load == "full":
        return
    if find_spec("bitsandbytes") is None:
        raise UserError(
            "model.load=nf4 needs bitsandbytes, which is not installed: pip install 'sapo-prompts[quant]'"
        )
    if device.type not in ("cpu", "cuda"):
        raise UserError(
            f"model.load=nf4: bitsandbytes has no 4-bit kernels for {device.type}. Try engine.device=cpu, or "
            "model.load=full."
        )


_loaded: dict[str, LanguageModel] = {}


def load_model(config: Config) -> LanguageModel:
    """The config's model, loaded once a process and kept; another model takes its place.

    With `model.load=nf4` its linear layers but for the output layer are in NF4, scales quantized too (QLoRA).
    """
    device, precision = device_of(config), getattr(torch, dtype_of(config))
    key = f"{model_identity(config)} {device}"
    if key in _loaded:
        return _loaded[key]
    require_loadable(config)
    _loaded.clear()
    _log.info("loading %s", config.model.name)
    # Weights that are read go through the CPU's memory; 16 GB of them are drawn faster on a GPU.
    place: Any = str(device) if is_random(config.model) else None
    quantization = None
    if config.model.load == "nf4":
        how = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=precision, **how)
        place = {"": device}
    base: Any = read_model(config.model, precision, place, quantization)
    for module in base.modules():
        # On some CPUs the first reading without gradients would round the scales of 4-bit weights for good: a
        # training after an evaluation would be another than one before.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    with _loading(f"model {config.model.name}", model_folder(config.model)):  # memory can run out here, too
        base = base.to(device).eval().requires_grad_(False)
    _loaded[key] = LanguageModel(base, load_tokenizer(config.model), config.model)
    return _loaded[key]
