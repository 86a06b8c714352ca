"""Models that no YAML file describes: a folder, or a repository on the hub, called what it is."""

import json
import math
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from sapo.conf.errors import UserError
from sapo.conf.names import plain, why_no_name
from sapo.conf.schema import ModelConfig

_LONGEST = 60  # characters of a name, which is a part of a run's
# Families whose queries and values are q_proj and v_proj, the paper's targets; and what others call theirs.
# Models of families that are in neither get an adapter on every linear layer.
_USUAL = """cohere cohere2 gemma gemma2 gemma3_text glm glm4 gpt_neo gpt_oss gptj granite helium llama mistral
ministral mixtral nemotron olmo olmo2 olmo3 opt persimmon phi qwen2 qwen2_moe qwen3 qwen3_moe smollm3 stablelm
starcoder2"""
_TARGETS = {family: ["q_proj", "v_proj"] for family in _USUAL.split()}
_TARGETS |= {"bloom": ["query_key_value"], "falcon": ["query_key_value"], "gpt_neox": ["query_key_value"]}
_TARGETS |= {"codegen": ["qkv_proj"], "phi3": ["qkv_proj"], "mpt": ["Wqkv"]}
_TARGETS |= {"gpt2": ["c_attn"], "gpt_bigcode": ["c_attn"]}
_THINKING = "enable_thinking"  # the switch of templates that open a block of thoughts before an answer


def model_called(text: str, revision: str | None = None) -> dict[str, Any] | None:
    """The settings of the model in a folder or at OWNER/NAME on the hub; None if `text` is neither."""
    folder = Path(os.path.expanduser(text))  # pathlib's raises for a user who is not there
    is_path = text.startswith(("/", ".", "~")) or (folder.is_dir() and "/" in text)
    if text and (is_path or (folder / "config.json").is_file()):
        return model_in(text)
    return model_on_hub(text, revision) if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text, re.ASCII) else None


def model_in(text: str) -> dict[str, Any]:
    """The settings of a folder's model: name, LoRA targets, switches of the chat template, size."""
    folder = Path(os.path.abspath(os.path.expanduser(text)))
    if not (folder / "config.json").is_file():
        raise UserError(f"Unknown model '{text}': no config.json in {folder}.")
    named = folder.parents[1] if folder.parent.name == "snapshots" else folder  # the hub's own cache
    name = _file_safe(named.name.rpartition("--")[2])
    return {"name": name, "source": f"path:{folder}", "path": str(folder), **_facts(folder)}


def model_on_hub(text: str, revision: str | None) -> dict[str, Any]:
    """The same of a repository; all but its name only if it is on this machine."""
    from huggingface_hub import try_to_load_from_cache  # not before it is needed: it takes a while

    try:
        cached = try_to_load_from_cache(text, "config.json", revision=revision)
    except ValueError as error:
        raise UserError(f"Unknown model '{text}': {error}") from error
    facts = _facts(Path(cached).parent) if isinstance(cached, str) else {}
    return {"name": _file_safe(text.rpartition("/")[2]), "source": f"hub:{text}", **facts}


def argument_of(model: ModelConfig) -> str:
    """What `model=` and `sapo fetch model` call a model by: its folder, its packaged name, or OWNER/NAME."""
    kind, _, name = model.source.partition(":")
    if model.path or kind == "path":
        return model.path or name
    is_packaged = any((Path(__file__).parent / "model").glob(f"{model.name}.yaml"))
    return name if kind == "hub" and not is_packaged else model.name


def _file_safe(name: str) -> str:
    name = plain(name)[:_LONGEST]
    return f"model_{name}" if why_no_name(name) else name


def _facts(folder: Path) -> dict[str, Any]:
    """What the files of a model say of it. Broken ones say nothing here: loading names them."""
    config: Any = {}
    with suppress(OSError, ValueError):
        config = json.loads((folder / "config.json").read_bytes())
    config = config if isinstance(config, dict) and config.get("model_type") else {}
    family = config.get("model_type")
    templates = (folder / name for name in ("chat_template.jinja", "tokenizer_config.json"))
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in templates if path.is_file())
    thinks = family in ("qwen3", "qwen3_moe") or any(_THINKING in text for text in texts)
    half = "16" in str(config.get("dtype") or config.get("torch_dtype"))
    matrices = 1 if config.get("tie_word_embeddings", True) else 2
    sizes = [config.get(name) for name in ("vocab_size", "hidden_size")]
    elements = math.prod(sizes) if all(isinstance(each, int) for each in sizes) else 0
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return {
        "lora_targets": _TARGETS.get(str(family), ["all-linear"]),
        "template_options": {_THINKING: False} if thinks else {},
        "parameters": round(size / (2 if half else 4) / 1e9, 3),
        "embeddings": round(matrices * float(elements) / 1e9, 3),
    }
