"""Tell failures that pass from those that stay: by HTTP status, by the system's error number, by the client's class.

Clients wrap errors in errors of their own, so the whole chain of causes is looked at. Nothing of a client is imported.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

_PASSING_STATUS = {408, 409, 423, 425, 429}
"""Besides 5xx. 409 is what S3 answers where two conditional writes of one object meet."""
_LASTING_STATUS = {501, 505}
_PASSING_CODES = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded"}
"""Codes of S3 that can come with another status, such as 400 or 403."""
_PASSING_NUMBERS = {
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EAGAIN", "EBUSY", "EINTR", "ETIMEDOUT", "ESTALE", "EMFILE", "ENFILE", "EREMOTEIO"),
        *("ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "EPIPE", "ENETDOWN", "ENETUNREACH", "ENETRESET"),
        *("EHOSTDOWN", "EHOSTUNREACH"),
    )
    if hasattr(errno, name)
}
_CLIENTS = {"botocore", "aiobotocore", "aiohttp", "requests", "urllib3", "httpx", "httpx2", "httpcore", "http"}
_PASSING_CLASSES = {
    *(
        "HTTPClientError",
        "ConnectionClosedError",
        "EndpointConnectionError",
        "IncompleteReadError",
        "ResponseStreamingError",
    ),
    *("ClientConnectionError", "ClientPayloadError", "ServerDisconnectedError"),
    *("ConnectionError", "ChunkedEncodingError", "Timeout", "ProtocolError", "IncompleteRead", "TransportError"),
}


def passes(error: BaseException) -> bool:
    """Return whether the same request may succeed a little later."""
    found = [*causes(error)]
    for one in found:
        if _code(one) in _PASSING_CODES:
            return True
        if (status := http_status(one)) is not None:
            return status in _PASSING_STATUS or (status >= 500 and status not in _LASTING_STATUS)
    return any(_passes_by_itself(one) for one in found)


def is_full(error: BaseException) -> bool:
    """Return whether a disk, or a share of one, had no room."""
    return any(isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT) for one in causes(error))


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came from, outermost first."""
    seen: set[int] = set()
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        yield now
        now = now.__cause__ or (None if now.__suppress_context__ else now.__context__)


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status that one error of a client carries: of botocore, aiohttp, requests, httpx or gcsfs."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = (
            getattr(response, "status_code", None) or getattr(error, "status", None) or getattr(error, "code", None)
        )
    return status if isinstance(status, int) and 100 <= status < 600 else None


def _code(error: BaseException) -> str | None:
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return code if isinstance(code, str) else None


def _passes_by_itself(error: BaseException) -> bool:
    if isinstance(error, FileNotFoundError | PermissionError | FileExistsError):
        return False
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno in _PASSING_NUMBERS:
        return True
    return any(
        kind.__module__.partition(".")[0] in _CLIENTS and kind.__name__ in _PASSING_CLASSES
        for kind in type(error).__mro__
    )
