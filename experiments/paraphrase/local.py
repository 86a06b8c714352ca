"""A chat model on this machine that samples its answers."""

from collections.abc import Sequence
from typing import Any

import torch

from sapo.conf.schema import Config
from sapo.experiments.model.budgets import one_example
from sapo.experiments.model.load import load_model
from sapo.experiments.paraphrase import OnReply, Reply

LONGEST = 512


class LocalChat:
    """The model of a config (`model=NAME`), which is loaded when it is first asked."""

    def __init__(self, config: Config) -> None:
        self._config, self.name = config, config.model.name
        self._temperature = config.paraphrases.temperature
        self._max_tokens = config.paraphrases.max_tokens or LONGEST
        sampling = {"temperature": self._temperature, "max_tokens": self._max_tokens}
        self.parameters: dict[str, Any] = {"model": self.name, **sampling, "seed": config.seed}

    def ask(self, texts: Sequence[str], on_reply: OnReply, seed: int = 0) -> None:
        """One answer after the other, so that none depends on the others; the i-th one's seed is seed + i."""
        model = load_model(self._config)
        base: Any = model.base
        sampling = {"do_sample": True, "temperature": self._temperature}
        stops = list(model.stop_ids())
        devices = [base.device] if base.device.type == "cuda" else []
        for i, text in enumerate(texts):
            inputs: Any = model.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}],
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
                **dict(model.config.template_options),
            )
            inputs = inputs.to(base.device)
            n_read = inputs["input_ids"].shape[1]
            with (
                torch.inference_mode(),
                torch.random.fork_rng(devices=devices),
                one_example(n_read + self._max_tokens),
            ):
                torch.manual_seed(seed + i)
                ids = base.generate(
                    **inputs,
                    **(sampling if self._temperature else {"do_sample": False}),
                    max_new_tokens=self._max_tokens,
                    eos_token_id=stops,
                    pad_token_id=stops[0],
                )
            answer = ids[0, n_read:].tolist()
            decoded = str(model.tokenizer.decode(answer, skip_special_tokens=True))
            is_cut = len(answer) == self._max_tokens and answer[-1] not in stops
            on_reply(i, Reply(decoded, None, n_read, len(answer), is_cut))
