"""A polite client for JSON over HTTP: rate limits, bounded concurrency, time limits, retries with back-off."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
import stamina
from aiolimiter import AsyncLimiter
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from rlaif.backends.base import Ended
from rlaif.backends.openai.refusals import Refusal, error_in, read_refusal, status_in
from rlaif.errors import UserError
from rlaif.tracking.redact import REDACTED, redact

logger = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # otherwise one line per request
T = TypeVar("T")

_RETRIED = frozenset({408, 409, 425, 429})  # and every 5xx
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEY = re.compile(r"[!-~]+")
_TOKEN_WINDOW = 5.0  # seconds of the token budget that may be spent in one burst
_LONGEST_MESSAGE = 300
_TIMEOUTS = 3  # attempts of one request that may time out
_LOST = 16  # calls in a row that were given up: then the server counts as gone
_LOOK_S, _LOOKS = 5.0, 2  # seconds and attempts that an optional route may cost


@dataclass(frozen=True)
class HttpOptions:
    """How a server is reached and how much load it may get.

    `api_key_env` names the environment variable that holds the key (None: no key is sent). `timeout_s` limits a
    whole request, `connect_timeout_s` its connection. A limit per minute may be None. After a temporary failure,
    a request is repeated up to `max_retries` times, first after about `backoff_s`, then after twice as long each
    time; no wait is longer than `max_wait_s`.

    Raises UserError for a value without meaning.
    """

    base_url: str
    api_key_env: str | None
    timeout_s: float
    connect_timeout_s: float
    max_concurrency: int
    requests_per_minute: float | None
    tokens_per_minute: float | None
    max_retries: int
    backoff_s: float
    max_wait_s: float

    def __post_init__(self) -> None:
        if not _is_address(self.base_url):
            raise UserError(
                f"backend.base_url={redact(self.base_url)} is not an address; write http://HOST:PORT/v1 or"
                " https://HOST/v1"
            )
        if self.api_key_env is not None and not _VARIABLE.fullmatch(self.api_key_env):
            raise UserError(
                "backend.api_key_env is not the name of an environment variable; put the key into one and write"
                " its name"
            )
        limits = ("timeout_s", "connect_timeout_s", "requests_per_minute", "tokens_per_minute", "backoff_s")
        for key in limits:
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise UserError(f"backend.{key}={value}; write a number above 0")
        if self.max_concurrency < 1 or self.max_retries < 0 or self.max_wait_s < 0:
            raise UserError("backend needs max_concurrency >= 1, max_retries >= 0 and max_wait_s >= 0")

    @property
    def place(self) -> str:
        """The address without a login."""
        return str(redact(self.base_url))


class Refused(Exception):
    """The server's final refusal of a request: its status and what it said (`refusal` in full).

    `empty` says that it no longer serves the account.
    """

    def __init__(self, status: int, message: str, refusal: Refusal, *, empty: bool) -> None:
        super().__init__(f"HTTP {status}: {message}" if message else f"HTTP {status}")
        self.status, self.refusal, self.empty = status, refusal, empty


class Unavailable(Exception):
    """No usable answer (yet); `wait` is how many seconds the server asks to wait (infinite: do not repeat)."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class TimedOut(Unavailable):
    """No answer within the time limit."""


def _say_retry(details: RetryDetails) -> None:
    logger.info("%s; asking again in %.1f s", details.caused_by, details.wait_for)


# One line that says why; stamina's own hides it in the record's attributes.
set_on_retry_hooks([_say_retry])


class Client:
    """Requests to one server, asynchronous inside, with `run` as the synchronous entry point.

    One event loop, in its own thread, serves all calls, so connections and limits outlast them.
    Raises UserError when the key's environment variable is not set.
    """

    def __init__(self, options: HttpOptions) -> None:
        self.options = options
        self._key = _api_key(options.api_key_env)
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(None, connect=options.connect_timeout_s),
            limits=httpx.Limits(max_connections=options.max_concurrency),
        )
        self._lost = 0
        self._places = asyncio.Semaphore(options.max_concurrency)
        requests, tokens = options.requests_per_minute, options.tokens_per_minute
        # One request every 60/n s, without an initial burst: servers count over sliding windows.
        self._requests = AsyncLimiter(1, 60 / requests) if requests else None
        self._tokens = AsyncLimiter(tokens * _TOKEN_WINDOW / 60, _TOKEN_WINDOW) if tokens else None
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=_serve, args=(self._loop,), name="rlaif-http", daemon=True).start()
        weakref.finalize(self, _close, self._loop, self._http)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of `coroutine`, on this client's event loop."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # an interrupt ends the requests too
            raise

    async def look(
        self, method: str, path: str, body: dict[str, Any] | None, parse: Callable[[Any], T]
    ) -> T | None:
        """What an optional route says (`path` below base_url, or a whole address); None if nothing usable.

        A refusal, or no answer within a few seconds, is not an error.
        """
        try:
            return await self._request(
                method, path, body, 0, parse, attempts=_LOOKS, limit_s=min(_LOOK_S, self.options.timeout_s)
            )
        except (Refused, Unavailable):
            return None

    async def post(self, path: str, body: dict[str, Any], parse: Callable[[Any], T], *, tokens: int) -> T:
        """POST `body` and read the JSON answer with `parse`; `tokens` counts towards the tokens per minute.

        The request is repeated after connection errors, time-outs (at most twice), 408, 409, 425, 429, 5xx, and
        answers that are not JSON or that `parse` cannot read; if there is a Retry-After, after that time. Raises
        Unavailable if such failures persist, Refused for any other status, and UserError for 401 and 403, for an
        account that is used up, and if the server has not answered any of the last calls.
        """
        try:
            attempts = self.options.max_retries + 1
            found = await self._request("POST", path, body, tokens, parse, attempts=attempts)
        except Unavailable as error:
            self._lost += 1
            if self._lost >= _LOST:
                raise UserError(
                    f"{self.options.place} has not answered the last {self._lost} calls ({error}): answers in the"
                    " label store are kept, and the same command continues from there once the server is back"
                ) from None
            raise
        except Refused as refused:
            self._lost = 0
            if refused.empty:
                raise UserError(
                    f"{self.options.place} no longer serves this account ({refused}): check its quota or billing."
                    " Answers in the label store are kept, and the same command continues from there"
                ) from None
            if refused.status in (401, 403):
                raise UserError(self._wrong_key(refused)) from None
            raise
        self._lost = 0
        return found

    async def _request(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        tokens: int,
        parse: Callable[[Any], T],
        *,
        attempts: int,
        limit_s: float | None = None,
    ) -> T:
        url = path if "://" in path else f"{self.options.base_url.rstrip('/')}/{path}"
        async for attempt in stamina.retry_context(
            on=self._may_pass,
            attempts=attempts,
            timeout=None,
            wait_initial=self.options.backoff_s,
            wait_max=self.options.max_wait_s,
            wait_jitter=self.options.backoff_s,
            wait_exp_base=2,
        ):
            with attempt:
                async with self._places:
                    await self._wait_for_rates(tokens)
                    try:
                        response = await self._send(method, url, body, limit_s or self.options.timeout_s)
                    except TimedOut as slow:
                        if limit_s is None and attempt.num < _TIMEOUTS:
                            raise
                        raise TimedOut(str(slow), math.inf) from None
                return self._read(response, parse)
        raise AssertionError("the last attempt returns or raises")

    def _may_pass(self, error: Exception) -> bool | float:
        """stamina's hook: whether to repeat, or the seconds to wait first."""
        if not isinstance(error, Unavailable):
            return False
        if error.wait is None:
            return True
        return error.wait if error.wait <= self.options.max_wait_s else False

    async def _wait_for_rates(self, tokens: float) -> None:
        if self._requests:
            await self._requests.acquire()
        while self._tokens and tokens > 0:
            part = min(tokens, self._tokens.max_rate)
            await self._tokens.acquire(part)
            tokens -= part

    async def _send(self, method: str, url: str, body: Any, limit_s: float) -> httpx.Response:
        try:
            async with asyncio.timeout(limit_s):
                return await self._http.request(method, url, json=body)
        except TimeoutError:
            raise TimedOut(f"no answer within {limit_s:g} s", None) from None
        except httpx.RequestError as error:
            why = self._clean(str(error)) or type(error).__name__
            raise Unavailable(f"connection to {self.options.place} failed ({why})") from None

    def _read(self, response: httpx.Response, parse: Callable[[Any], T]) -> T:
        if not response.is_success:
            raise self._failure(response.status_code, response.text, _retry_after(response))
        try:
            found = response.json()
            error = error_in(found)
            if error is None:
                return parse(found)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError):
            raise Unavailable("the answer is not JSON of the expected form") from None
        raise self._failure(status_in(error, response.status_code), error, _retry_after(response))

    def _failure(self, status: int, body: Any, wait: float | None) -> Refused | Unavailable:
        """An answer without a result as an error: temporary or final."""
        refusal = read_refusal(body)
        said = self._clean(refusal.message)
        if refusal.empties(status, wait):
            return Refused(status, said, refusal, empty=True)
        if status in _RETRIED or status >= 500:
            return Unavailable(f"HTTP {status}: {said}" if said else f"HTTP {status}", wait)
        return Refused(status, said, refusal, empty=False)

    def _wrong_key(self, refused: Refused) -> str:
        advice = "put its key into an environment variable and write backend.api_key_env=NAME"
        if self.options.api_key_env:
            advice = f"check the key in the environment variable {self.options.api_key_env}"
        return f"{self.options.place} refuses the request ({refused}): {advice}"

    def _clean(self, text: str) -> str:
        """A server's message on one line, without the key in case it repeats it."""
        text = " ".join(text.split())
        return str(redact(text.replace(self._key, REDACTED) if self._key else text))[:_LONGEST_MESSAGE]


async def gather(
    coroutines: Iterable[Coroutine[Any, Any, T]], tasks: list[asyncio.Task[T]] | None = None
) -> list[T]:
    """Results in order. The first error ends the others and is raised as itself; `tasks` receives the tasks."""
    tasks = [] if tasks is None else tasks
    try:
        async with asyncio.TaskGroup() as group:
            tasks += [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def gather_what_is_done(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Like `gather`, but a UserError is raised as Ended, with the results there were by then."""
    tasks: list[asyncio.Task[T]] = []
    try:
        return await gather(coroutines, tasks)
    except UserError as error:
        done = [None if task.cancelled() or task.exception() else task.result() for task in tasks]
        raise Ended(str(error), done) from None


def _is_address(text: str) -> bool:
    with suppress(httpx.InvalidURL):
        url = httpx.URL(text)
        return url.scheme in ("http", "https") and bool(url.host)
    return False


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"backend.api_key_env={variable}, but that environment variable is not set: export it, or write null"
        )
    if not _KEY.fullmatch(key):
        raise UserError(f"the key in the environment variable {variable} has spaces or odd characters in it")
    return key


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _close(loop: asyncio.AbstractEventLoop, http: httpx.AsyncClient) -> None:
    async def close() -> None:
        await http.aclose()
        loop.stop()

    asyncio.run_coroutine_threadsafe(close(), loop)


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that a Retry-After header asks for (a number or an HTTP date); None if it says nothing."""
    value = response.headers.get("Retry-After", "")
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError):
        when = parsedate_to_datetime(value)
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return max(0.0, (when - datetime.now(UTC)).total_seconds())
    return None
