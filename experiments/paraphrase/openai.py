"""Any OpenAI-compatible endpoint, asked through the `openai` client, its retries and its time limits.

The key comes from the environment, goes into one header, and is taken out of everything that comes back.
"""

import asyncio
import base64
import json
import os
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from sapo.conf.errors import UserError, WorkError
from sapo.conf.schema import ParaphrasesConfig
from sapo.data.files import is_text
from sapo.experiments.paraphrase import OnReply, Reply

KEY_VARIABLE = "OPENAI_API_KEY"
LONGEST_BODY = 8 << 20  # bytes of one answer: a hundred times what a long chat completion has
LONGEST_PAUSE = 60  # seconds that the client waits before it asks again, at most
SHORTEST_SECRET = 8  # servers of one's own are given keys such as `x`, which stand in any text
_NO_KEY = "The key (variable: {}) was not accepted: paraphrases.key_variable=NAME takes another."
_NO_PLACE = "Look at paraphrases.base_url (it often ends in /v1) and paraphrases.model."
_MOVED = "It points to another address: paraphrases.base_url=URL takes that."
# What every other request would meet too.
REMEDIES = {401: _NO_KEY, 403: _NO_KEY, 404: _NO_PLACE, 405: _NO_PLACE}
REMEDIES |= dict.fromkeys(range(300, 400), _MOVED)
FEWEST_FAILURES = 3  # in a row, each after its retries: the endpoint is down, or does not understand
SHOWN = 160  # characters of an unexpected answer
_HEADERS = {"host", "accept", "connection", "content-type", "content-length", "user-agent"}
_HEADERS |= {"x-stainless-raw-response"}  # by it the client knows that the answer is to be left as it came


class OpenAIChat:
    """A model behind an endpoint. Raises UserError if key, model or the package `openai` is missing."""

    def __init__(self, settings: ParaphrasesConfig) -> None:
        self._settings, self._address = settings, address(settings)
        variable = key_variable(settings)
        self._key = os.environ.get(variable, "").strip() if variable else ""
        if variable and not self._key:
            raise UserError(
                f"No key: the environment variable {variable} is not set. Set it (export {variable}=…), or "
                "name another one with paraphrases.key_variable=NAME. Nothing was sent."
            )
        if not all("!" <= char <= "~" for char in self._key):
            raise UserError(f"The key in {variable} holds blanks or characters that no header can.")
        if settings.model is None and not is_loopback(self._address):
            raise UserError("Which model? Say paraphrases.model=NAME, as the endpoint calls it.")
        self.name = settings.model or "the endpoint's only model"  # until it says which one it is
        body = request_body(settings, "")
        sampling = ("model", "temperature", "max_tokens")
        self.parameters = {name: body[name] for name in sampling if name in body}
        try:
            import openai
        except ImportError as error:
            raise UserError(
                "An endpoint is asked through the package `openai`: pip install 'sapo-prompts[endpoint]'"
            ) from error
        self._openai: Any = openai

    def ask(self, texts: Sequence[str], on_reply: OnReply, seed: int = 0) -> None:
        """Many at once, until too many in a row fail; endpoints differ in whether they know a seed."""
        del seed
        asyncio.run(self._ask_all(texts, on_reply))

    async def _ask_all(self, texts: Sequence[str], on_reply: OnReply) -> None:
        settings, openai, failed = self._settings, self._openai, 0
        client = openai.AsyncOpenAI(
            api_key="set in the header of each request",
            base_url=self._address,
            timeout=settings.timeout,
            max_retries=settings.retries,
            http_client=openai.DefaultAsyncHttpxClient(
                follow_redirects=False,  # the key goes to the address that was given, and to no other
                trust_env=not is_loopback(self._address),  # a proxy cannot reach this machine's loopback
                event_hooks={"request": [self._set_headers], "response": [self._bound]},
            ),
        )
        places = asyncio.Semaphore(settings.concurrency)

        async def ask_one(i: int) -> tuple[int, Reply]:
            async with places:
                return i, await self._answer(client, texts[i])

        tasks = [asyncio.create_task(ask_one(i)) for i in range(len(texts))]
        try:
            for task in asyncio.as_completed(tasks):
                i, reply = await task
                on_reply(i, reply)
                failed = failed + 1 if reply.error is not None else 0
                if failed >= max(FEWEST_FAILURES, settings.concurrency):
                    break
        finally:
            for unfinished in tasks:
                unfinished.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await client.close()

    async def _set_headers(self, request: Any) -> None:
        """Sends the key that was asked for, and nothing else that the client finds in the environment."""
        for name in set(request.headers) - _HEADERS:
            del request.headers[name]
        # What is not compressed cannot grow when it is unpacked: the bytes that come are counted.
        request.headers["Accept-Encoding"] = "identity"
        request.extensions["begun"] = monotonic()
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"

    async def _bound(self, response: Any) -> None:
        """Reads an answer of any status, of bounded time and bytes; past them it is not asked again."""
        failure, limit = self._openai.OpenAIError, self._settings.timeout
        deadline = response.request.extensions["begun"] + limit
        if response.headers.get("content-encoding", "identity") != "identity":
            raise failure("the answer is compressed, which it was asked not to be")
        content, stream = bytearray(), response.stream
        try:
            async for chunk in stream:
                content += chunk
                if len(content) > LONGEST_BODY:
                    raise failure(f"the answer is longer than {LONGEST_BODY:,} bytes")
                if monotonic() > deadline:
                    raise failure(f"no whole answer within {limit:g} s")
        finally:
            await stream.aclose()
        # What the client reads now; the class is that of what it sent.
        response.stream = type(response.request.stream)(bytes(content))

    async def _answer(self, client: Any, text: str) -> Reply:
        """One request and its retries; raises UserError or WorkError for what is wrong with every request."""
        openai, settings = self._openai, self._settings
        asked = f", asked {settings.retries + 1} times" if settings.retries else ""
        response, problem = None, ""
        # The client has a limit for each piece, and even headers may come a byte a second.
        longest = (settings.retries + 1) * settings.timeout + settings.retries * LONGEST_PAUSE + 1
        try:
            body = {"model": openai.omit, **request_body(settings, text)}
            async with asyncio.timeout(longest):
                response = await client.chat.completions.with_raw_response.create(**body)
        except openai.APIStatusError as error:
            response = error.response
        except (openai.APITimeoutError, TimeoutError):
            problem = f"no answer within {settings.timeout:g} s{asked}"
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            problem = f"no connection ({type(cause).__name__}: {cause}){asked}"
        except Exception as error:
            problem = str(error)
        # From here on no exception is being handled, so that none with a header in it can be chained to ours.
        if response is None:
            return Reply(error=self._hidden(f"{self._address}: {problem}"))
        status, content = response.status_code, self._hidden(response.text)
        line = next((line.strip() for line in content.splitlines() if line.strip()), "an empty body")
        shown = f"{self._address} answered {status}: {line[:SHOWN]}{'…' if len(line) > SHOWN else ''}"
        if remedy := REMEDIES.get(status):
            raise UserError(f"{shown}\n{remedy.format(key_variable(settings) or 'none')}")
        if status >= 400:  # after its retries, or about this very text, or a parameter
            return Reply(error=shown + (asked if status in (408, 409, 429) or status >= 500 else ""))
        return self._completion(content, shown)

    def _completion(self, content: str, shown: str) -> Reply:
        try:
            document = json.loads(content)
            choice = document["choices"][0]
            text = choice["message"]["content"] or ""
        except (ValueError, LookupError, TypeError, RecursionError):
            raise WorkError(
                f"{shown}\nThat is no chat completion. paraphrases.base_url must be the address that "
                "/chat/completions follows; it often ends in /v1."
            ) from None
        if not is_text(text):
            return Reply(error=f"{shown}: its answer is not a text that can be written")
        usage, model = document.get("usage"), document.get("model")
        usage = usage if isinstance(usage, dict) else {}
        counts = (usage.get(f"{part}_tokens") for part in ("prompt", "completion"))
        read, written = (count if type(count) is int and count >= 0 else None for count in counts)
        if self._settings.model is None and model and is_text(model):
            self.name = self._hidden(model)
        # Hidden once more, since JSON may have written the key with escapes.
        return Reply(self._hidden(text), None, read, written, choice.get("finish_reason") == "length")

    def _hidden(self, text: str) -> str:
        for spelling in spellings(self._key) if len(self._key) >= SHORTEST_SECRET else ():
            text = text.replace(spelling, "***")
        return text


def spellings(key: str) -> Iterator[str]:
    """The key, and what the base64 of any text that holds it has of it, by where in the text it begins."""
    yield key
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(b"\0" * before + key.encode()).decode().rstrip("=")
            # The first and the last character depend on the neighbours too.
            last = -1 if (before + len(key)) % 3 else None
            yield encoded[(8 * before + 5) // 6 : last]


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
    url = address(settings)
    if settings.key_variable or is_loopback(url):
        return settings.key_variable
    if not url.startswith("https:"):
        raise UserError(
            f"{url} is not encrypted. Use https, or name the variable whose value may be sent there in clear "
            "text: paraphrases.key_variable=NAME"
        )
    return KEY_VARIABLE


def is_loopback(url: str) -> bool:
    """Whether an address is this machine's own, which no proxy reaches."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or (host.startswith("127.") and host.replace(".", "").isdigit())
