"""Stand-ins: a server of a tiny model as published ones are, with a fault planted in it; a scripted chat."""

import json
from collections.abc import Callable
from typing import Any

import torch
from tiny import Answering

from sapo.experiments.paraphrase import Reply

# What becomes of a chat's turns; other faults are of the text that the template makes of them, or its tokens.
TURNS: dict[str, Callable[[list], list]] = {
    "system": lambda turns: [{"role": "system", "content": "You are a helpful assistant."}, *turns],
    "bare": lambda turns: [{**turn, "content": only_input(turn["content"])} for turn in turns],
    "part": lambda turns: [{**turn, "content": turn["content"].partition("\n\n")[2]} for turn in turns],
}


def only_input(content: str) -> str:
    return content.partition("Text:\n")[2].partition("\n\n")[0]


class StandIn:
    """Answers the routes of one style of server.

    `vllm` shows tokens and echoes, `llama` shows the text and its tokens, `serve` counts tokens, `answers`
    only answers. `model` and `tokenizer` are Transformers'.
    """

    def __init__(self, model: Any, tokenizer: Any, style: str, fault: str = "") -> None:
        self.model, self.tokenizer, self.style, self.fault = model, tokenizer, style, fault
        self.requests: list[tuple[str, dict]] = []
        self.headers: dict[str, str] = {}

    def text(self, body: dict) -> str:
        turns = TURNS.get(self.fault, list)(body["messages"])
        options = body.get("chat_template_kwargs", {}) | {"tokenize": False, "add_generation_prompt": True}
        text = self.tokenizer.apply_chat_template(turns, **options)
        if self.fault == "twice":
            text = self.tokenizer.apply_chat_template([{"role": "user", "content": text}], **options)
        return text + "<think>\n" if self.fault == "think" else text

    def ids(self, text: str) -> list[int]:
        bos = [self.tokenizer.bos_token_id] if self.fault == "bos" else []
        return bos + self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def answer(self, path: str, body: dict) -> tuple[int, Any]:
        """Status and JSON of a route."""
        self.requests.append((path, body))
        if path in ("/v1/chat/completions", "/v1/completions"):
            return self._completion(path, body)
        if path == "/tokenize" and self.style == "vllm":
            ids = self.ids(self.text(body) if "messages" in body else body["prompt"])
            return 200, {"count": len(ids), "max_model_len": 4096, "tokens": ids}
        if path == "/tokenize" and self.style == "llama":
            return 200, {"tokens": self.ids(body["content"]) if "content" in body else []}
        if path == "/apply-template" and self.style == "llama":
            return 200, {"prompt": self.text(body)}
        return 404, {"detail": "Not Found"}

    @torch.inference_mode()
    def _completion(self, path: str, body: dict) -> tuple[int, Any]:
        prompt = self.text(body) if "messages" in body else body["prompt"]
        if body.get("echo"):
            if self.style != "vllm":
                return 400, {"error": {"message": "Only no echo is supported"}}
            losses = self.model(torch.tensor([prompt])).logits[0].log_softmax(-1)
            known = [losses[i, token].item() for i, token in enumerate(prompt[1:])]
            return 200, {"choices": [{"text": "", "logprobs": {"token_logprobs": [None, *known, -1.0]}}]}
        ids = self.ids(prompt)
        whole = self.model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=body["max_tokens"],
            pad_token_id=self.tokenizer.pad_token_id,
        )
        text = self.tokenizer.decode(whole[0, len(ids) :], skip_special_tokens=True)
        choice = {"message": {"content": text}} if path.endswith("chat/completions") else {"text": text}
        usage = {} if self.style == "answers" else {"usage": {"prompt_tokens": len(ids)}}
        return 200, {"choices": [choice], **usage}

    def handler(self) -> type[Answering]:
        """For a server of Python's own."""
        stand_in = self

        class Handler(Answering):
            do_GET = Answering.do_POST  # noqa: N815

            def answer(self, body: bytes) -> None:
                models = {"data": [{"id": "base"}, {"id": "adapter", "parent": "base"}]}
                stand_in.headers = dict(self.headers)
                status, found = stand_in.answer(self.path, json.loads(body)) if body else (200, models)
                self.send(status, json.dumps(found).encode(), Content_Type="application/json")

        return Handler


class Scripted:
    """A chat that says what it was given, in order, the last again and again.

    None is a failure, an exception is raised. `beside` is a thread that is started when the chat is asked,
    and comes to wait for it, as `log` shows.
    """

    name = "scripted"

    def __init__(self, *answers: str | BaseException | None, beside: Any = None, log: Any = None) -> None:
        self.answers, self.beside, self.log = list(answers), beside, log
        self.asked: list[str] = []
        self.seeds: list[int] = []
        self.parameters: dict[str, Any] = {"temperature": 0.6}

    def ask(self, texts, on_reply, seed=0):
        if self.beside and not self.asked:
            self.beside.start()
            while "waiting for it" not in self.log.text:
                self.beside.join(0.01)
                assert self.beside.is_alive()
        self.seeds.append(seed)
        for i, text in enumerate(texts):
            self.asked.append(text)
            said = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if isinstance(said, BaseException):
                raise said
            on_reply(i, Reply(error="no answer") if said is None else Reply(said, None, 10, 2))
