"""Any OpenAI-compatible endpoint, asked through the `openai` client.

The key comes from the environment, goes into one header, and is taken out of everything that comes back.
"""

import json
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import Any
from urllib.parse import urlsplit

from sapo.conf.errors import UserError, WorkError
from sapo.conf.schema import ParaphrasesConfig
from sapo.experiments.paraphrase.chat import OnReply, Reply

KEY_VARIABLE = "OPENAI_API_KEY"
LONGEST_WAIT = 120.0  # seconds; an endpoint that asks for more has failed
SHORTEST_SECRET = 8  # servers of one's own are given keys such as `x`, which stand in any text
REFUSED = (401, 403, 404, 405)  # what every other request would meet too
PASSING = (408, 409, 429)  # and all 5xx: worth asking again
FEWEST_FAILURES = (
    3  # in a row, each after its retries: the endpoint is taken to be down, or not to understand
)
NOT_ASKED = "not asked, since the requests before had no answer"
SHOWN = 160  # characters of an unexpected answer
_HEADERS = {"host", "accept", "accept-encoding", "connection", "content-type", "content-length", "user-agent"}
_HEADERS |= {"x-stainless-raw-response"}  # by it the client knows that the answer is to be left as it came
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Passing:
    """A failure that may pass, and how long the endpoint asks to wait."""

    reason: str
    wait: float | None = None


class OpenAIChat:
    """A model behind an endpoint. Raises UserError if key, model or the package `openai` is missing."""

    def __init__(self, settings: ParaphrasesConfig) -> None:
        self._settings = settings
        variable = key_variable(settings)
        self._key = _key_in(variable) if variable else ""
        if settings.model is None and not _is_loopback(address(settings)):
            raise UserError("Which model? Say paraphrases.model=NAME, as the endpoint calls it.")
        self._told = ""
        self._client = self._connected()

    @property
    def name(self) -> str:
        """The model that is asked for; else the one that the endpoint says it is."""
        return self._settings.model or self._told or "the endpoint's only model"

    @property
    def parameters(self) -> dict[str, Any]:
        """Model and sampling."""
        body = request_body(self._settings, "")
        return {name: body[name] for name in ("model", "temperature", "max_tokens") if name in body}

    def ask(self, texts: Sequence[str], *, seed: int = 0, on_reply: OnReply | None = None) -> list[Reply]:
        """The replies in order; `seed` does nothing, since endpoints differ in whether they know one."""
        del seed
        replies = [Reply(error=NOT_ASKED)] * len(texts)
        failed = 0
        for i, reply in _at_once(self._answer, texts, self._settings.concurrency):
            if isinstance(reply, UserError):
                raise reply
            if isinstance(reply, Exception):  # its traceback is left behind: a library's may show headers
                what = f"{type(reply).__name__}: {reply}"
                raise WorkError(f"Asking {address(self._settings)} failed: {self._hidden(what)}")
            replies[i] = reply
            if on_reply:
                on_reply(i, reply)
            failed = failed + 1 if reply.error is not None else 0
            if failed >= max(FEWEST_FAILURES, self._settings.concurrency):
                break
        return replies

    def _connected(self) -> Any:
        try:
            import openai
        except ImportError as error:
            raise UserError(
                "An endpoint is asked through the package `openai`: pip install 'sapo-prompts[endpoint]'"
            ) from error
        http = openai.DefaultHttpxClient(
            follow_redirects=False,  # the key goes to the address that was given, and to no other
            trust_env=not _is_loopback(
                address(self._settings)
            ),  # a proxy cannot reach this machine's loopback
            event_hooks={"request": [self._set_headers]},
        )
        return openai.OpenAI(
            api_key="set in the header of each request",
            base_url=address(self._settings),
            timeout=self._settings.timeout,
            max_retries=0,
            http_client=http,
        )

    def _set_headers(self, request: Any) -> None:
        """Sends the key that was asked for, and nothing else that the client finds in the environment."""
        for name in set(request.headers) - _HEADERS:
            del request.headers[name]
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"

    def _answer(self, text: str, stop: threading.Event) -> Reply:
        attempt, longest = 0, LONGEST_WAIT
        while True:
            outcome = self._request(text)
            if isinstance(outcome, Reply):
                return outcome
            wait = self._settings.backoff * 2**attempt if outcome.wait is None else outcome.wait
            if outcome.wait is not None and wait > longest:
                return Reply(
                    error=f"{outcome.reason}; it asks to wait {wait:.0f} s, longer than {longest:.0f} s"
                )
            attempt += 1
            if attempt <= self._settings.retries:
                _log.info("%s; asking again in %.1f s", outcome.reason, min(wait, longest))
            if attempt > self._settings.retries or stop.wait(min(wait, longest)):
                return Reply(error=outcome.reason + (f", asked {attempt} times" if attempt > 1 else ""))

    def _request(self, text: str) -> Reply | _Passing:
        """One request; raises UserError or WorkError for what is wrong with every request."""
        import openai

        body = request_body(self._settings, text)
        response, problem = None, ""
        try:
            response = self._client.chat.completions.with_raw_response.create(
                **{"model": openai.omit, **body}
            )
        except openai.APIStatusError as error:
            response = error.response
        except openai.APITimeoutError:
            problem = f"no answer within {self._settings.timeout:g} s"
        except openai.APIConnectionError as error:
            problem = f"no connection ({type(error.__cause__ or error).__name__}: {error.__cause__ or error})"
        # From here on no exception is being handled, so that none with a header in it can be chained to ours.
        if response is None:
            return _Passing(self._hidden(f"{address(self._settings)}: {problem}"))
        return self._read(response.status_code, response.headers, response.text)

    def _read(self, status: int, headers: Any, content: str) -> Reply | _Passing:
        content = self._hidden(content)
        said = f"{address(self._settings)} answered {status}: {_first_line(content)}"
        if status in PASSING or status >= 500:
            return _Passing(said, _seconds(headers.get("retry-after")))
        if status in REFUSED:
            raise UserError(f"{said}\n{self._mend(status)}")
        if 300 <= status < 400:
            raise UserError(
                f"{said}\nIt points to another address; give that one as paraphrases.base_url=URL."
            )
        if status >= 400:  # about this very text, or a parameter
            return Reply(error=said)
        return self._completion(content, said)

    def _completion(self, content: str, said: str) -> Reply:
        try:
            document = json.loads(content)
            choice = document["choices"][0]
            text = choice["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise WorkError(
                f"{said}\nThat is no chat completion. paraphrases.base_url must be the address that "
                "/chat/completions follows; it often ends in /v1."
            ) from None
        if not isinstance(text, str | None):
            return Reply(error=f"{said}: its answer is not a text")
        usage = document.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        read, written = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
        self._told = self._hidden(str(document.get("model") or ""))
        # Hidden once more, since JSON may have written the key with escapes.
        return Reply(
            self._hidden(text or ""),
            tokens_in=read if isinstance(read, int) else None,
            tokens_out=written if isinstance(written, int) else None,
            is_cut=choice.get("finish_reason") == "length",
        )

    def _mend(self, status: int) -> str:
        if status in (401, 403):
            variable = key_variable(self._settings)
            if variable:
                return (
                    f"The key in {variable} was not accepted (paraphrases.key_variable=NAME takes another)."
                )
            return "No key was sent. Name the variable that holds one: paraphrases.key_variable=NAME"
        return "Look at paraphrases.base_url (it often ends in /v1) and paraphrases.model."

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, "***") if len(self._key) >= SHORTEST_SECRET else text


def address(settings: ParaphrasesConfig) -> str:
    """The endpoint's address; UserError if there is none."""
    if settings.base_url is None:
        raise UserError("Which endpoint? Say paraphrases.base_url=URL.")
    return settings.base_url.rstrip("/")


def request_body(settings: ParaphrasesConfig, text: str) -> dict[str, Any]:
    """What is sent for one message; values that are not set are left to the endpoint."""
    body = {
        "model": settings.model,
        "messages": [{"role": "user", "content": text}],
        "temperature": settings.temperature,
        "max_tokens": settings.max_tokens,
        "stream": False,
    }
    return {name: value for name, value in body.items() if value is not None}


def key_variable(settings: ParaphrasesConfig) -> str | None:
    """The variable that holds the key; None where none is sent: to this machine, unless one is named.

    UserError where a key that was not named would go over the network in clear text.
    """
    if settings.key_variable:
        return settings.key_variable
    url = address(settings)
    if _is_loopback(url):
        return None
    if not url.startswith("https:"):
        raise UserError(
            f"{url} is not encrypted. Use https, or name the variable whose value may be sent there in clear "
            "text: paraphrases.key_variable=NAME"
        )
    return KEY_VARIABLE


def _key_in(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"No key: the environment variable {variable} is not set. Set it (export {variable}=…), or name "
            "another one with paraphrases.key_variable=NAME. Nothing was sent."
        )
    if not all("!" <= char <= "~" for char in key):
        raise UserError(
            f"The key in {variable} holds blanks or characters that no header can. Nothing was sent."
        )
    return key


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or (host.startswith("127.") and host.replace(".", "").isdigit())


def _first_line(content: str) -> str:
    line = next((line.strip() for line in content.splitlines() if line.strip()), "")
    if not line:
        return "an empty body"
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}…"


def _seconds(retry_after: str | None) -> float | None:
    """What a Retry-After header asks to wait: it holds seconds or a date; None if it says nothing legible."""
    if not retry_after:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time()
        except ValueError:
            return None
    return max(0.0, seconds) if seconds == seconds else None


def _at_once(
    work: Callable[[str, threading.Event], Reply], texts: Sequence[str], threads: int
) -> Iterator[tuple[int, Reply | Exception]]:
    """Place and reply of each text as it comes, some in work at a time; stops when the caller stops.

    The threads are daemons: who interrupts does not wait for an endpoint that hangs.
    """
    waiting: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Reply | Exception]] = queue.SimpleQueue()
    stop = threading.Event()
    for pair in enumerate(texts):
        waiting.put(pair)

    def serve() -> None:
        while not stop.is_set():
            try:
                i, text = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((i, work(text, stop)))
            except Exception as error:  # a thread that dies silently would leave the caller waiting
                stop.set()
                done.put((i, error))

    for _ in range(min(threads, len(texts))):
        threading.Thread(target=serve, daemon=True).start()
    try:
        for _ in texts:
            yield done.get()
    finally:
        stop.set()
