"""Any OpenAI-compatible endpoint, asked through the `openai` client and its retries.

The key comes from the environment, goes into one header, and is taken out of everything that comes back.
"""

import base64
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from sapo.conf.errors import UserError, WorkError
from sapo.conf.schema import ParaphrasesConfig
from sapo.data.files import is_text
from sapo.experiments.paraphrase.chat import OnReply, Reply

KEY_VARIABLE = "OPENAI_API_KEY"
LONGEST_BODY = 8 << 20  # bytes of one answer: a hundred times what a long chat completion has
SHORTEST_SECRET = 8  # servers of one's own are given keys such as `x`, which stand in any text
REFUSED = (401, 403, 404, 405)  # what every other request would meet too
FEWEST_FAILURES = 3  # in a row, each after its retries: the endpoint is down, or does not understand
NOT_ASKED = "not asked, since the requests before had no answer"
SHOWN = 160  # characters of an unexpected answer
_HEADERS = {"host", "accept", "connection", "content-type", "content-length", "user-agent"}
_HEADERS |= {"x-stainless-raw-response"}  # by it the client knows that the answer is to be left as it came


class OpenAIChat:
    """A model behind an endpoint. Raises UserError if key, model or the package `openai` is missing."""

    def __init__(self, settings: ParaphrasesConfig) -> None:
        self._settings = settings
        self._address = address(settings)
        variable = key_variable(settings)
        self._key = _key_in(variable) if variable else ""
        self._spellings = _spellings(self._key)
        is_local = _is_loopback(self._address)
        if settings.model is None and not is_local:
            raise UserError("Which model? Say paraphrases.model=NAME, as the endpoint calls it.")
        self._model = settings.model or "the endpoint's only model"
        try:
            import openai
        except ImportError as error:
            raise UserError(
                "An endpoint is asked through the package `openai`: pip install 'sapo-prompts[endpoint]'"
            ) from error
        self._openai: Any = openai
        self._client = openai.OpenAI(
            api_key="set in the header of each request",
            base_url=self._address,
            timeout=settings.timeout,
            max_retries=settings.retries,
            http_client=openai.DefaultHttpxClient(
                follow_redirects=False,  # the key goes to the address that was given, and to no other
                trust_env=not is_local,  # a proxy cannot reach this machine's loopback
                event_hooks={"request": [self._set_headers], "response": [self._bound]},
            ),
        )

    @property
    def name(self) -> str:
        """The model that is asked for; else the one that the endpoint says it is."""
        return self._model

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
                raise WorkError(f"Asking {self._address} failed: {self._hidden(what)}")
            replies[i] = reply
            if on_reply:
                on_reply(i, reply)
            failed = failed + 1 if reply.error is not None else 0
            if failed >= max(FEWEST_FAILURES, self._settings.concurrency):
                break
        return replies

    def _set_headers(self, request: Any) -> None:
        """Sends the key that was asked for, and nothing else that the client finds in the environment."""
        for name in set(request.headers) - _HEADERS:
            del request.headers[name]
        # What is not compressed cannot grow when it is unpacked: the bytes that come are counted.
        request.headers["Accept-Encoding"] = "identity"
        request.extensions["begun"] = monotonic()
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"

    def _bound(self, response: Any) -> None:
        """Bounds the time and the bytes of an answer of any status; past them it is not asked again."""
        failure, limit = self._openai.OpenAIError, self._settings.timeout
        deadline = response.request.extensions["begun"] + limit
        if response.headers.get("content-encoding", "identity") != "identity":
            raise failure("the answer is compressed, which it was asked not to be")
        stream = response.stream
        kind: Any = next(base for base in type(stream).__mro__ if base.__name__ == "SyncByteStream")

        class Bounded(kind):
            def __iter__(self) -> Iterator[bytes]:
                size = 0
                for chunk in stream:
                    size += len(chunk)
                    if size > LONGEST_BODY:
                        raise failure(f"the answer is longer than {LONGEST_BODY:,} bytes")
                    if monotonic() > deadline:
                        raise failure(f"no whole answer within {limit:g} s")
                    yield chunk

            def close(self) -> None:
                stream.close()

        response.stream = Bounded()

    def _answer(self, text: str) -> Reply:
        """One request and its retries; raises UserError or WorkError for what is wrong with every request."""
        openai, settings = self._openai, self._settings
        body = {"model": openai.omit, **request_body(settings, text)}
        asked = f", asked {settings.retries + 1} times" if settings.retries else ""
        response, problem = None, ""
        try:
            response = self._client.chat.completions.with_raw_response.create(**body)
        except openai.APIStatusError as error:
            response = error.response
        except openai.APITimeoutError:
            problem = f"no answer within {settings.timeout:g} s{asked}"
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            problem = f"no connection ({type(cause).__name__}: {cause}){asked}"
        except openai.OpenAIError as error:
            problem = str(error)
        # From here on no exception is being handled, so that none with a header in it can be chained to ours.
        if response is None:
            return Reply(error=self._hidden(f"{self._address}: {problem}"))
        status, content = response.status_code, self._hidden(response.text)
        line = next((line.strip() for line in content.splitlines() if line.strip()), "an empty body")
        shown = f"{self._address} answered {status}: {line[:SHOWN]}{'…' if len(line) > SHOWN else ''}"
        if status in REFUSED:
            raise UserError(f"{shown}\n{self._remedy(status)}")
        if 300 <= status < 400:
            raise UserError(
                f"{shown}\nIt points to another address; give that one as paraphrases.base_url=URL."
            )
        if status >= 400:  # after its retries, or about this very text, or a parameter
            return Reply(error=shown + (asked if status in (408, 409, 429) or status >= 500 else ""))
        return self._completion(content, shown)

    def _completion(self, content: str, shown: str) -> Reply:
        try:
            document = json.loads(content)
            choice = document["choices"][0]
            text = choice["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise WorkError(
                f"{shown}\nThat is no chat completion. paraphrases.base_url must be the address that "
                "/chat/completions follows; it often ends in /v1."
            ) from None
        if text is not None and not is_text(text):
            return Reply(error=f"{shown}: its answer is not a text that can be written")
        usage = document.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        counts = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
        read, written = (count if type(count) is int and count >= 0 else None for count in counts)
        model = document.get("model")
        if self._settings.model is None and model and is_text(model):
            self._model = self._hidden(model)
        # Hidden once more, since JSON may have written the key with escapes.
        return Reply(self._hidden(text or ""), None, read, written, choice.get("finish_reason") == "length")

    def _remedy(self, status: int) -> str:
        if status not in (401, 403):
            return "Look at paraphrases.base_url (it often ends in /v1) and paraphrases.model."
        if variable := key_variable(self._settings):
            return f"The key in {variable} was not accepted (paraphrases.key_variable=NAME takes another)."
        return "No key was sent. Name the variable that holds one: paraphrases.key_variable=NAME"

    def _hidden(self, text: str) -> str:
        for spelling in self._spellings:
            text = text.replace(spelling, "***")
        return text


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


def _spellings(key: str) -> list[str]:
    """The key, and what the base64 of any text that holds it has of it, by where in the text it begins."""
    if len(key) < SHORTEST_SECRET:
        return []
    spellings = [key]
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(b"\0" * before + key.encode()).decode().rstrip("=")
            # The first and the last character depend on the neighbours too.
            last = -1 if (before + len(key)) % 3 else None
            spellings.append(encoded[(8 * before + 5) // 6 : last])
    return spellings


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or (host.startswith("127.") and host.replace(".", "").isdigit())


def _at_once(
    work: Callable[[str], Reply], texts: Sequence[str], threads: int
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
                done.put((i, work(text)))
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
