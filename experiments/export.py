"""A state of a finished run as files for others: an ordinary PEFT adapter, or a whole merged model."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sapo.conf.errors import UserError, WorkError
from sapo.conf.models import argument_of
from sapo.conf.schema import Config
from sapo.data.files import stored_json
from sapo.data.records import BASE, StateRecord
from sapo.data.render import as_sent
from sapo.data.tasks import Task
from sapo.experiments.engine.store import Stored
from sapo.experiments.model.adapters import FOLDER, WEIGHTS, load_adapter, unwrap
from sapo.experiments.model.fetch import model_folder
from sapo.experiments.model.load import load_renderer, load_tokenizer, read_model
from sapo.experiments.model.preflight import preflight
from sapo.experiments.reevaluation import FinishedRun

CARD = "README.md"
# A tokenizer beside an adapter's own files would make AutoPeftModel resize the base model's embeddings.
TOKENIZER = "tokenizer"
# Largest difference between the logits of adapter and merged model, as a share of the largest logit: the
# merge itself is in float32, and below that the rounding of the saved weights decides.
TOLERANCE, TOLERANCE_OF_HALVES = 1e-4, 0.05


@dataclass(frozen=True)
class Exportable:
    """A trained state of a finished run, and what it has learned, in order.

    `learned` has of each task `task`, `instruction` (what it is tested with), `separator`, `suffix`, `drawn`,
    the prompts that training drew from, None where it used the instruction alone, and what `as_sent` has.
    """

    run: FinishedRun
    state: StateRecord
    trained: Stored
    learned: list[dict[str, Any]]

    @property
    def adapter(self) -> Path:
        """The stored adapter."""
        return self.trained.folder / FOLDER

    def facts(self, merge: bool) -> dict[str, Any]:
        """What is exported, as JSON values."""
        record, config, model = self.run.record, self.run.config, self.run.config.model
        name, revision = base_of(config)
        return {
            "run": record.id,
            "sequence": record.sequence,
            "kind": "merged" if merge else "adapter",
            "state": {"after": self.state.after, "key": self.trained.key},
            "base": {
                "model": model.name,
                "load": name,
                "revision": revision,
                "source": model.source,
                "in_4_bits": model.load == "nf4",
                "is_folder": bool(model.path) or model.source.startswith("path:"),
            },
            "is_on_hub": not Path(name).is_absolute(),
            "rank": stored_json(self.adapter / "adapter_config.json")["r"],
            "template_options": dict(model.template_options),
            "max_new_tokens": config.evaluator.max_new_tokens,
            "tasks": self.learned,
            "tested": list(self.state.tasks),
            "definition": config.parity.definition,
        }


def exportable(run: FinishedRun, wanted: str) -> Exportable:
    """The wanted state: `last`, a number of trained tasks, or the task after whose training it was.

    Raises UserError if there is no such state, it has no adapter, it is not in the store (any more), or the
    base model on this machine is not the one that the run trained; WorkError if the store is damaged.
    """
    state = _state(run, wanted)
    trained: list[Stored] = []  # that led to it, the last one first
    shown: list[dict[str, Any]] = []
    after, key = state.after, state.key
    while key != BASE:
        stored = run.store.find("train", key)
        if stored is None:
            raise run.missing(after)
        trained.append(stored)
        identity = stored.identity
        shown = [learned["task"] for learned in identity["tasks"]] + shown
        after, key = identity["position"], identity["state"]
    preflight(run.config, trains=False, answers=False)
    run.require_same_base()
    renderer = load_renderer(run.config)
    learned: list[dict[str, Any]] = []
    for choice, identity in zip(run.learned(state), shown, strict=True):
        frame = {name: identity[name] for name in ("separator", "suffix")}
        task = Task(choice.task, choice.text, train=(), test=(), **frame)
        drawn = choice.drawn and list(choice.drawn)
        facts = {"task": choice.task, "instruction": choice.text, **frame, "drawn": drawn}
        learned.append(facts | as_sent(renderer, task, choice.text))
    return Exportable(run, state, trained[0], learned)


def _state(run: FinishedRun, wanted: str) -> StateRecord:
    name, tasks = run.record.id, ", ".join(run.record.tasks)
    trained = [state for state in run.record.states if state.key != BASE]
    if not trained:
        method = run.record.method
        raise UserError(f"Run {name} trained nothing (method {method}): it has no adapter to export.")
    if wanted in {"base", "0"}:
        raise UserError(
            f"--state {wanted}: the untouched model has no adapter to export. "
            f"Where it lies: sapo show model {argument_of(run.config.model)}"
        )
    numbers = sorted({state.after for state in trained})
    number = numbers[-1] if wanted == "last" else int(wanted) if wanted.isdecimal() else None
    found = [state for state in trained if state.after == number]
    if not found:  # the first state that has learned the task is the one that its training left
        found = [s for s in trained if wanted in [choice.task for choice in run.learned(s)]][:1]
    if len(found) > 1:
        raise UserError(
            f"--state {wanted}: run {name} trained each task alone, and has a state for each. "
            f"Say --state TASK, one of: {tasks}."
        )
    if not found:
        raise UserError(
            f"--state {wanted}: run {name} has the states last, {', '.join(map(str, numbers))} "
            f"(trained tasks), or by the task trained last: {tasks}."
        )
    return found[0]


def base_of(config: Config) -> tuple[str, str | None]:
    """What a user loads the base model by, a hub name or a folder on this machine, and the hub's revision."""
    kind, _, name = config.model.source.partition(":")
    if kind == "hub" and not config.model.path:
        return name, config.model.revision
    return str(model_folder(config.model).resolve()), None


def require_free(folder: Path) -> None:
    """UserError if there is something at `folder` already; an empty folder is nothing."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--to {folder}: this folder is not empty. Name a new one; nothing is overwritten.")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--to {folder}: this is a file. Name a new folder.")


def require_repository(name: str) -> None:
    """UserError unless `name` is OWNER/NAME as the hub can have it."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push {name}: {error}") from error
    if "/" not in name:
        raise UserError(f"--push {name}: must be OWNER/NAME, the owner a user or an organization of the hub.")


def upload(folder: Path, name: str, is_public: bool) -> str:
    """Uploads an export to a repository on the hub, made if there is none, and returns the commit's address.

    WorkError if the hub takes it not; the folder stays.
    """
    try:
        api = HfApi()
        repository = api.create_repo(name, private=not is_public, exist_ok=True).repo_id
        done = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export of sapo")
    except Exception as error:  # no network, no token, no right, a full quota: classes of several packages
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise WorkError(
            f"Cannot push to {name}: {reason}. The export is whole in {folder}. When that is mended (hf auth "
            f"login takes a token): hf upload {name} {folder}"
        ) from error
    return done.commit_url


def export(source: Exportable, folder: Path, merge: bool, card: str) -> float | None:
    """Writes adapter or merged model, tokenizer and model card to `folder`, entirely or not at all.

    Returns, of a merged model, the largest difference of its logits to the adapter's, as a share of the
    largest logit; raises WorkError if it is above the tolerance.
    """
    require_free(folder)
    if merge and source.run.config.model.load != "full":
        raise UserError(
            f"Run {source.run.record.id} trained on weights in 4 bits (model.load=nf4), which cannot take an "
            "adapter in; merged into whole weights it would answer otherwise. Leave out --merge."
        )
    tokenizer, target = load_tokenizer(source.run.config.model), folder.resolve()
    difference = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            built = Path(scratch) / "built"
            built.mkdir()
            if merge:
                difference = _write_merged(source, built, tokenizer)
                tokenizer.save_pretrained(built)
            else:
                config = LoraConfig.from_pretrained(str(source.adapter))
                config.base_model_name_or_path, config.revision = base_of(source.run.config)
                config.save_pretrained(str(built))
                (built / WEIGHTS).write_bytes((source.adapter / WEIGHTS).read_bytes())
                tokenizer.save_pretrained(built / TOKENIZER)
            (built / CARD).write_text(card, encoding="utf-8")
            for path in built.glob("*.safetensors"):  # written for their owner alone
                path.chmod((built / CARD).stat().st_mode)
            built.rename(target)
    except (OSError, SafetensorError) as error:
        raise WorkError(f"The export to {folder} failed, and left nothing: {error}") from error
    return difference


def _write_merged(source: Exportable, folder: Path, tokenizer: PreTrainedTokenizerBase) -> float:
    model = source.run.config.model
    base: Any = read_model(model, "auto").eval()
    if getattr(base.config, "quantization_config", None):
        raise UserError(f"Model {model.name} is quantized and cannot take merged weights. Leave out --merge.")
    ids = torch.tensor([tokenizer(source.learned[-1]["text"], add_special_tokens=False)["input_ids"][:512]])
    adapted = load_adapter(base, source.adapter).eval()
    with torch.inference_mode():
        before = adapted(input_ids=ids).logits.float()
    merge_into(base, adapted)
    with torch.inference_mode():
        after = base(input_ids=ids).logits.float()
    difference = float((after - before).abs().max() / before.abs().max())
    tolerance = TOLERANCE if base.dtype == torch.float32 else TOLERANCE_OF_HALVES
    if not difference <= tolerance:
        raise WorkError(
            f"The merged model's logits differ from the adapter's by {difference:.2g} of the largest one, "
            f"more than {tolerance:g}. Export the adapter (without --merge)."
        )
    base.save_pretrained(folder)
    return difference


def merge_into(base: PreTrainedModel, adapted: PeftModel) -> None:
    """Adds the adapter on `adapted` (float32) to the weights of its base, in float32, and takes it off.

    Weights keep their precision. Raises UserError if a module's weights are the token embedding's too.
    """
    embedding = base.get_input_embeddings().weight
    with torch.no_grad():
        for name, module in adapted.named_modules():
            if not isinstance(module, LoraLayer):
                continue
            layer: Any = module
            weight = layer.get_base_layer().weight
            if weight is embedding:
                raise UserError(
                    f"Module {name.rsplit('.', 1)[-1]} shares its weights with the token embedding, which a "
                    "merge would change too. Export the adapter (without --merge)."
                )
            weight.copy_(weight.float() + layer.get_delta_weight("default"))
    unwrap(base)
