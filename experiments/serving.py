"""Whether an OpenAI-compatible endpoint reads the tokens that a state was trained on, and answers as it did.

What the endpoint shows decides how it is looked at: the tokens of a chat themselves (vLLM's `/tokenize`,
llama.cpp's `/apply-template` and `/tokenize`), else how many it counts; the log-probabilities of the targets,
where it gives those of a prompt (`echo`); and always its greedy answers to test rows whose answers are known.
"""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from itertools import zip_longest
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

import pandas as pd

from sapo.conf.errors import UserError, WorkError
from sapo.data.benchmarks import load_task
from sapo.data.prompts import Prompt
from sapo.data.records import BASE
from sapo.data.render import Rendered, Renderer
from sapo.data.tasks import Example
from sapo.experiments.doctor import Check
from sapo.experiments.engine.local import LocalEngine
from sapo.experiments.export import Exportable
from sapo.experiments.model.load import load_renderer
from sapo.experiments.paraphrase.openai import is_loopback
from sapo.experiments.reevaluation import FinishedRun
from sapo.experiments.stages import Evaluate

INPUT = "{input}"  # stands for a row's input in what a program sends
LONGEST_BODY = 64 << 20  # bytes of one answer
LARGEST_GAP = 0.1  # nats a target token between two precisions of the same weights; 4 bits may reach it
MOST_OTHER = 0.25  # share of greedy answers that another precision may change
BEGINNING = 24  # characters by which answers are compared: another precision changes the later ones first
SHOWN = 160  # characters of a server's message, and of each text around a difference
ABSENT = (400, 404, 405, 415, 422, 501)  # what servers say to a request that they do not know
FAULTS = {  # by their names, with what mends each
    "the chat template is applied twice": "Send turns to chat/completions, or a whole text to completions.",
    "the beginning-of-text token is doubled": "The template writes it already: have the server add none "
    "(add_special_tokens: false in the request; add_bos_token: false in the tokenizer's config).",
    "the block of thoughts is not as in training": "Send chat_template_kwargs as trained: {options}. If the "
    "server knows none, it needs a chat template with that answer built in.",
    "the layout is missing": "Send the whole layout as the model card has it, not the input alone.",
    "a part of the layout is missing": "Send the whole layout as the model card has it.",
    "a system turn is added": "Serve with the chat template of the export's tokenizer (vLLM: "
    "--chat-template, llama-server: --chat-template-file), and have no gateway add a turn.",
}
OTHER = "other tokens are read"
TWICE, BOS, THINK, BARE, PART, SYSTEM = FAULTS


class _NoRedirect(HTTPRedirectHandler):
    """A key goes to the address that was given, and to no other."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class _RefusedError(WorkError):
    status = 0


@dataclass(frozen=True)
class Endpoint:
    """A server's address, with or without `/v1`; the model's name there; the key, sent as its header."""

    url: str
    model: str | None = None
    key: str = ""
    timeout: float = 120.0

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            is_right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # no port, or no address
            is_right = False
        if not is_right or {*"@?#"} & {*self.url}:
            raise UserError("serve= must be http(s)://HOST[:PORT][/PATH], with no user, password or query.")

    @property
    def root(self) -> str:
        """The address that `/v1/chat/completions` follows."""
        return self.url.rstrip("/").removesuffix("/v1")

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON that a route answers, to a POST if there is a body; WorkError says why there is none."""
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        headers |= {"Authorization": f"Bearer {self.key}"} if self.key else {}
        named = {"model": self.model} if self.model else {}
        data, where = None if body is None else json.dumps({**named, **body}).encode(), self.root + path
        opener = build_opener(_NoRedirect, *([ProxyHandler({})] if is_loopback(self.url) else []))
        try:
            request = Request(where, data, headers)  # noqa: S310 (http and https only)
            with opener.open(request, timeout=self.timeout) as response:
                return json.loads(response.read(LONGEST_BODY))
        except HTTPError as error:
            said = " ".join(error.read(LONGEST_BODY).decode(errors="replace").split())[:SHOWN]
            refused = _RefusedError(f"{where} answered {error.code}: {said or error.reason}")
            refused.status = error.code
            raise refused from None
        except (ValueError, RecursionError):
            raise WorkError(f"{where} did not answer with JSON. Is it an OpenAI-compatible server?") from None
        except (OSError, HTTPException) as error:
            reason = error.reason if isinstance(error, URLError) else error
            raise WorkError(f"{where}: no answer ({reason}). Is the server up, at this address?") from None

    def offered(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """What a route answers that not every server has; nothing where it is unknown."""
        try:
            found = self.ask(path, body)
        except _RefusedError as error:
            if error.status not in ABSENT and error.status < 500:
                raise
            return {}
        return found if isinstance(found, dict) else {}

    def models(self) -> list[str]:
        """The names that the server lists."""
        try:
            return [str(each["id"]) for each in self.ask("/v1/models")["data"]]
        except (WorkError, LookupError, TypeError):
            return []


@dataclass(frozen=True)
class Planted:
    """A test row, what the run read of it, and what it measured."""

    example: Example
    rendered: Rendered
    answer: str
    nll: float  # nats a target token


class Served:
    """An endpoint beside a trained state: what is asked for a row, and what the state has read and answered.

    `task` is one that the state has learned, the last one if None. `sent` is the body of the request that a
    program sends, with `{input}` in place of the input; without it, the trained layout is sent as a chat.
    """

    def __init__(
        self,
        source: Exportable,
        endpoint: Endpoint,
        task: str | None = None,
        rows: int = 8,
        sent: dict[str, Any] | None = None,
    ) -> None:
        self.run: FinishedRun = source.run
        self.state, self.endpoint, self.sent = source.state, endpoint, sent
        learned = {each["task"]: each["instruction"] for each in source.learned}
        name = task or [*learned][-1]
        if name not in learned:
            raise UserError(f"--task {name}: the state has learned {', '.join(learned)}.")
        is_body = (
            isinstance(sent, dict) and INPUT in json.dumps(sent) and {"messages", "prompt"} & sent.keys()
        )
        if sent is not None and not is_body:
            raise UserError(
                "--request: must be a request's body, a JSON object with `messages` (a chat) or `prompt` (a "
                f"text), and {INPUT} in place of the input."
            )
        self.task, self.prompt = load_task(name, self.run.config), Prompt(learned[name])
        self.renderer: Renderer = load_renderer(self.run.config)
        # Rows that are read whole: first one of each answer, and those whose answers came to their end.
        table = self.measured(self.state.key, None, few=4 * rows)
        table = table[~table["is_shortened"]]
        table = table.assign(again=table.groupby("prediction").cumcount())
        chosen = table.sort_values(["is_unfinished", "again"], kind="stable").head(rows).sort_index()
        if chosen.empty:
            raise UserError(f"Task {self.task.name}: no test row that is read whole (data.max_input_tokens).")
        self.places = chosen["example"].tolist()
        examples = [self.task.test[place] for place in self.places]
        rendered = self.renderer.render(self.task, self.prompt.text, examples, for_test=True)
        facts = zip(examples, rendered, chosen["prediction"], chosen["nll"], strict=True)
        self.rows = [Planted(*each) for each in facts]

    def measured(self, key: str, places: Sequence[int] | None, few: int = 0) -> pd.DataFrame:
        """A state's answers and losses on test rows, all or the first few without `places`.

        What is not stored is computed now, on those rows alone.
        """
        config, task = self.run.config, self.task
        config = replace(config, evaluator=replace(config.evaluator, answers=True))
        stage = Evaluate(config, key, task, self.prompt)
        with self.run.store.at_work(required=False):
            if stored := self.run.store.find("evaluate", stage.key):
                table = stored.examples()
                return table if places is None else table.set_index("example").loc[list(places)].reset_index()
            rows = task.test[:few] if places is None else tuple(task.test[place] for place in places)
            stage = replace(stage, task=replace(task, test=rows))
            return asyncio.run(LocalEngine(self.run.store).run(stage)).examples()

    # --- what is sent, and what comes back ------------------------------------------------------------------

    def body(self, row: Planted) -> dict[str, Any]:
        """What is sent for a row, but for how its answer is decoded."""
        if self.sent is not None:
            text = json.dumps(self.sent).replace(INPUT, json.dumps(row.example.input)[1:-1])
            return dict(json.loads(text))
        messages = self.renderer.messages(self.task, self.prompt.text, row.example.input)
        options = self.renderer.template_options
        return {"messages": messages, **({"chat_template_kwargs": options} if options else {})}

    def reply(self, row: Planted) -> tuple[str, int | None]:
        """The greedy answer to a row, and how many tokens the endpoint says to have read.

        WorkError with the server's message if there is no answer.
        """
        body, settings = self.body(row), self.run.config.evaluator
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        decoding = {"temperature": 0, "max_tokens": settings.max_new_tokens, "stream": False}
        try:
            found = self.endpoint.ask(path, {**body, **decoding})
            choice = found["choices"][0]
            text = (choice["message"]["content"] if "messages" in body else choice["text"]) or ""
        except _RefusedError as error:
            models = self.endpoint.models()
            known = f" Models there: {', '.join(models[:9])} (--model NAME)." if models else ""
            raise WorkError(f"{error}{known}") from None
        except (LookupError, TypeError):
            raise WorkError(f"{self.endpoint.root}{path}: its answer is no completion.") from None
        usage = found.get("usage")
        count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        if settings.clean_up_spaces:
            text = self.renderer.tokenizer.clean_up_tokenization(text)
        return text.strip(), count if type(count) is int else None

    def tokens(self, row: Planted) -> tuple[str, list[int]] | None:
        """The route that shows which tokens the endpoint reads of a row, and the tokens."""
        body = {name: value for name, value in self.body(row).items() if name != "model"}
        shown, route = self.endpoint.offered, "/tokenize"
        found: dict[str, Any] = {}
        text = body.get("prompt")
        if "messages" in body and isinstance(text := shown("/apply-template", body).get("prompt"), str):
            route = "/apply-template and /tokenize"
        else:
            asked = ("messages", "prompt", "chat_template_kwargs", "add_special_tokens")
            found = shown("/tokenize", {name: body[name] for name in asked if name in body})
        # llama.cpp's knows a text only, and answers anything else with no tokens.
        if "count" not in found and isinstance(text, str):
            found = shown("/tokenize", {"content": text, "add_special": True, "parse_special": True})
        ids = found.get("tokens")
        if not isinstance(ids, list) or not ids or any(type(token) is not int for token in ids):
            return None
        return route, ids

    def target_nll(self, row: Planted) -> float | None:
        """The target's loss (nats a token) at the endpoint, of the trained tokens; None if it shows none."""
        ids, start = row.rendered.input_ids, row.rendered.target_start
        body = {"prompt": ids, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
        try:
            logprobs = self.endpoint.offered("/v1/completions", body)["choices"][0]["logprobs"]
            found = [float(value) for value in logprobs["token_logprobs"][start : len(ids)]]
        except (LookupError, TypeError, ValueError):
            return None
        return -sum(found) / len(found) if len(found) == len(ids) - start else None

    # --- what it means --------------------------------------------------------------------------------------

    def checks(self, told: Callable[[], object] = lambda: None) -> Iterator[Check]:
        """Tokens, log-probabilities and answers; `told` hears of each row that was asked."""
        replies = []
        for row in self.rows:
            replies.append(self.reply(row))
            told()
        yield (reading := self._reading([count for _, count in replies]))
        yield self._weights()
        yield self._answers([text for text, _ in replies], reading.ok or not reading.required)

    def _reading(self, counts: Sequence[int | None]) -> Check:
        name, rows = "tokens", self.rows
        if first := self.tokens(rows[0]):
            route = first[0]
            for row, found in zip(rows, [first, *map(self.tokens, rows[1:])], strict=True):
                if found is not None and found[1] != row.rendered.prompt_ids:
                    fault, texts = difference(self, row, found[1])
                    return Check(name, False, f"{fault} ({route})\n{texts}", self._mend(fault))
            return Check(name, True, f"{len(rows)} rows are read as they were trained ({route})")
        ours = [len(row.rendered.prompt_ids) for row in rows]
        if counts == ours:
            return Check(name, True, f"{len(rows)} rows have as many tokens as in training (its own count)")
        if None not in counts:
            guesses = [{(fault, len(ids)) for fault, ids in misreadings(self, row)} for row in rows]
            asked = list(zip(guesses, counts, strict=True))
            fits = [fault for fault in FAULTS if all((fault, count) in guess for guess, count in asked)]
            gaps = {(count or 0) - own for count, own in zip(counts, ours, strict=True)}
            if not fits and len(gaps) == 1:
                fits = [SYSTEM if min(gaps) > 0 else PART]
            if fits:
                detail = f"{counts[0]} tokens in place of {ours[0]}: {' or '.join(fits)} (its own count)"
                return Check(name, False, detail, " ".join(map(self._mend, fits)))
        detail = "the endpoint shows none, and no counts that could be compared: answers have to tell"
        return Check(name, False, detail, required=False)

    def _mend(self, fault: str) -> str:
        options = json.dumps(self.renderer.template_options)
        return FAULTS.get(fault, "Look at the server's chat template and tokenizer.").format(options=options)

    def _weights(self) -> Check:
        name, known = "weights", []
        for row in self.rows:
            if (loss := self.target_nll(row)) is None:
                detail = "no log-probabilities of a prompt to compare (echo): answers have to tell"
                return Check(name, False, detail, required=False)
            known.append(loss)
        gap = _gap(known, [row.nll for row in self.rows])
        said = f"the targets' NLL is {gap:.4f} nats a token from the run's"
        if gap <= LARGEST_GAP:
            return Check(name, True, said)
        others = self._other_states().items()
        nearest, where = min((_gap(known, table["nll"].tolist()), where) for where, table in others)
        if nearest < gap / 2:
            return Check(name, False, f"{said}, and {nearest:.4f} from {where}'s", _ADAPTER)
        return Check(name, False, f"{said}: other weights, or a rough quantization", _ADAPTER)

    def _answers(self, texts: Sequence[str], is_read: bool) -> Check:
        n, most = len(self.rows), MOST_OTHER * len(self.rows)
        other = [i for i, row in enumerate(self.rows) if not _alike(texts[i], row.answer)]
        said = f"{n - len(other)} of {n} are the run's"
        if other:
            served, trained = texts[other[0]][:SHOWN], self.rows[other[0]].answer[:SHOWN]
            said += f"; test row {self.places[other[0]]}: {served!r} for {trained!r}"
        if len(other) <= most:
            return Check("answers", True, said)
        for where, table in self._other_states().items() if is_read else ():
            same = sum(map(_alike, texts, table["prediction"]))
            if n - same <= most:
                return Check("answers", False, f"{said}\nThey are {where}'s: {same} of {n}", _ADAPTER)
        return Check("answers", False, said, _ADAPTER if is_read else "")

    def _other_states(self) -> dict[str, pd.DataFrame]:
        """What the run's other states, the untouched model first, answer on the planted rows."""
        found: dict[str, pd.DataFrame] = {}
        for state in self.run.record.states:
            if state.key != self.state.key:
                where = "the untouched base model" if state.key == BASE else f"state {state.after}"
                found[where] = self.measured(state.key, self.places)
        return found


_ADAPTER = "Load the exported adapter, and ask for it by its name (--model); or serve an export --merge."


def _alike(answer: str, other: str) -> bool:
    return answer[:BEGINNING] == other[:BEGINNING]


def _gap(found: Sequence[float], expected: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(found, expected, strict=True)) / len(found)


# --- faults by their names ---------------------------------------------------------------------------------


def misreadings(served: Served, row: Planted) -> list[tuple[str, list[int]]]:
    """What an endpoint would read of a row under each fault that leaves nothing open."""
    renderer, text = served.renderer, row.example.input
    tokenizer, asked = renderer.tokenizer, (served.task, served.prompt.text, text)
    whole = renderer.prompt_text(*asked)
    texts = [
        (TWICE, renderer.asked([{"role": "user", "content": whole}])),
        (BARE, renderer.asked([{"role": "user", "content": text}])),
        (THINK, replace(renderer, template_options={}).prompt_text(*asked)),
        *((THINK, whole + block) for block in ("<think>", "<think>\n", "<think>\n\n</think>\n\n")),
    ]
    found = [(name, tokenizer(each, add_special_tokens=False)["input_ids"]) for name, each in texts]
    if tokenizer.bos_token_id is not None:
        found.append((BOS, [tokenizer.bos_token_id, *row.rendered.prompt_ids]))
    return [(name, ids) for name, ids in found if ids != row.rendered.prompt_ids]


def difference(served: Served, row: Planted, read: list[int]) -> tuple[str, str]:
    """The fault by which an endpoint reads other tokens of a row, and both texts from where they part."""
    renderer, trained = served.renderer, row.rendered.prompt_ids
    decode = renderer.tokenizer.decode
    place = next(i for i, (ours, theirs) in enumerate(zip_longest(trained, read)) if ours != theirs)
    texts = "\n".join(
        f"{who:<8} token {place}: {decode(ids[max(0, place - 4) :])[:SHOWN]!r}"
        for who, ids in (("trained", trained), ("served", read))
    )
    ours, theirs = str(decode(trained)), str(decode(read))
    for fault, ids in misreadings(served, row):
        if ids == read:
            return fault, texts
    if ("<think" in ours) != ("<think" in theirs):
        return THINK, texts
    system = _system_of(renderer, theirs)
    if system is not None and system != _system_of(renderer, ours):
        return SYSTEM, texts
    turns = renderer.messages(served.task, served.prompt.text, row.example.input)
    parts = (served.prompt.text, served.task.separator, served.task.suffix)
    sent = " ".join(turn["content"] for turn in turns)
    lost = [part for part in parts if part and part in sent and part not in theirs]
    named = PART if len(lost) < len([*filter(None, parts)]) else BARE
    return named if lost else OTHER, texts


def _system_of(renderer: Renderer, text: str) -> str | None:
    """What the system turn before the user's says in a decoded text; None without one."""
    mark, user = "(system)", "(user)"
    try:
        framed = renderer.asked([{"role": "system", "content": mark}, {"role": "user", "content": user}])
    except UserError:
        return None
    # Some tokenizers write other blanks than they have read.
    framed = str(renderer.tokenizer.decode(renderer.tokenizer(framed, add_special_tokens=False)["input_ids"]))
    before, _, after = framed.partition(mark)
    between = after.partition(user)[0]
    if not between.strip() or not text.startswith(before) or between not in text[len(before) :]:
        return None
    return text[len(before) :].partition(between)[0]
