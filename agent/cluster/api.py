"""Request JSON of the Kubernetes API, with the official client's configuration and connections, not its models."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kubernetes.client.api_client import ApiClient
from kubernetes.client.configuration import Configuration
from kubernetes.client.exceptions import OpenApiException
from kubernetes.config import ConfigException, incluster_config, kube_config
from urllib3.connection import HTTPConnection

from agent.cluster.store import ConflictError, NotFoundError, StoreError
from agent.codec import strict_json
from agent.codec.strict_json import JsonError

CONNECT_WITHIN = 5.0  # seconds
ANSWER_WITHIN = 15.0  # seconds
AGENT_THREADS = 32  # connections: a watch for each kind, and the agent's threads; calls of the plugin have others
JSON = "application/json"
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"  # a tenth of a Pod (API concepts)
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"  # the same of a list
LONGEST_LINE = 8 << 20  # bytes: etcd holds objects of 1.5 MiB at most
LONGEST_RETRY = 300.0  # seconds; a longer Retry-After is cut to this
SWITCHES = frozenset({"insecure-skip-tls-verify", "disable-compression"})  # of a kubeconfig's cluster
CONFIGURATION = (
    ConfigException,
    yaml.YAMLError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
)
"""Exceptions that the client's configuration raises."""
NOT_FOUND, CONFLICT, GONE, UNAUTHORIZED = 404, 409, 410, 401
# A connection whose other end vanished ends after 30 s, idle (15 + 3 x 5) or not (tcp(7)).
KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)

log = logging.getLogger(__name__)


class ApiError(StoreError):
    """A request to the API server failed: `status` of HTTP (0: no answer), `retry_after` in seconds."""

    def __init__(self, what: str, status: int = 0, retry_after: float = 0.0) -> None:
        super().__init__(what)
        self.outcome_unknown = not 400 <= status < 500
        self.status = status
        self.retry_after = retry_after


class GoneError(ApiError):
    """The resourceVersion expired: list again (API concepts, 410 Gone)."""


class UnreadableEventError(ApiError):
    """An event is unreadable; only a new list has what it said."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to the API server; `content_type` is that of the body of a PATCH."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: object = None
    content_type: str = ""
    accept: str = JSON

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class Api:
    """Send requests to one API server, each with a timeout of `within` seconds; thread-safe.

    `threads`: how many threads send requests at once. So many connections are kept: each costs a TLS handshake.
    """

    def __init__(
        self, load: Callable[[], Configuration], within: float = ANSWER_WITHIN, threads: int = AGENT_THREADS
    ) -> None:
        self._load = load
        self._within = within
        self._threads = threads
        self._lock = threading.Lock()
        self._client: ApiClient | None = None

    def ask(self, request: Request) -> dict[str, Any]:
        """Send a request and return the JSON answer. Raises ApiError, ConflictError, NotFoundError."""
        response = self._open(request, self._within)
        try:
            return strict_json.tolerant(response.data)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _unanswered(request, error) from error
        except ValueError as error:
            raise ApiError(f"{request}: the answer is not a JSON object: {_reason(error)}") from error

    def watch(self, path: str, query: Mapping[str, str], silence: float) -> Stream:
        """Watch a path; the stream ends after `silence` seconds without a byte. Raises ApiError."""
        return Stream(path, self._open(Request("GET", path, query), silence))

    def _open(self, request: Request, within: float) -> urllib3.BaseHTTPResponse:
        client = self._connected()
        headers = {"Accept": request.accept}
        if request.content_type:
            headers["Content-Type"] = request.content_type
        try:
            serialized = client.param_serialize(
                request.method, request.path, query_params=list(request.query.items()), header_params=headers,
                body=request.body, auth_settings=["BearerToken"],
            )  # fmt: skip
        except CONFIGURATION as error:  # the token is read again once a minute
            self._forget(client)
            raise ApiError(f"cannot configure the connection to the API server: {error}") from error
        try:
            response = client.call_api(*serialized, _request_timeout=(min(CONNECT_WITHIN, self._within), within))
        except OpenApiException as error:  # the client turns an SSLError into it
            self._forget(client)  # the CA may have been rotated
            raise ApiError(f"{request}: {_reason(error.__context__ or error)}") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _unanswered(request, error) from error
        except ValueError:  # its text has the token
            self._forget(client)
            what = "the token has a character that is not allowed in an HTTP header"
            raise ApiError(f"cannot configure the connection to the API server: {what}") from None
        answer: urllib3.BaseHTTPResponse = response.response
        if answer.status >= 300:
            if answer.status == UNAUTHORIZED:
                self._forget(client)  # the token may have been rotated
            raise _refusal(request, answer)
        return answer

    def _connected(self) -> ApiClient:
        with self._lock:
            if self._client is None:
                try:
                    configuration = self._load()
                    configuration.connection_pool_maxsize = self._threads
                    self._client = ApiClient(configuration)
                except CONFIGURATION as error:
                    raise ApiError(f"cannot configure the connection to the API server: {error}") from error
                self._client.user_agent = "testcni-agent"
            return self._client

    def _forget(self, client: ApiClient) -> None:
        """Read the configuration again at the next request."""
        with self._lock:
            if self._client is client:
                self._client = None


class Stream:
    """The events of a watch (API concepts, efficient detection of changes)."""

    def __init__(self, path: str, response: urllib3.BaseHTTPResponse) -> None:
        self._path = path
        self._response = response

    def __iter__(self) -> Iterator[dict[str, Any] | UnreadableEventError]:
        """Yield events until the server ends the watch; an unreadable event is yielded as an error.

        Raises ApiError when the connection fails or the server is silent for too long.
        """
        rest = b""
        try:
            for chunk in self._response.stream(1 << 16):
                *whole, rest = (rest + chunk).split(b"\n")
                if len(rest) > LONGEST_LINE:
                    raise ApiError(f"watch {self._path}: an event of more than {LONGEST_LINE} bytes")
                for line in whole:
                    if line.strip():
                        yield _event(self._path, line)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise ApiError(f"watch {self._path}: {_reason(error)}") from error
        finally:
            self._response.close()

    def close(self) -> None:
        """End the watch from another thread; it may have ended already."""
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # what urllib3 raises if it has ended
            self._response.shutdown()


def from_kubeconfig(path: Path) -> Configuration:
    """Return the configuration of a kubeconfig's current context.

    The library reads any text as a switch that is on, and a server without a scheme as plain HTTP, so both are
    refused here. Raises ConfigException, OSError, and for a file of another shape any of CONFIGURATION.
    """
    for file, doc in kube_config.KubeConfigMerger(str(path)).config_files.items():
        for wrong in _loose(doc):
            raise ConfigException(f"{file}: {wrong}")
    configuration = _configuration()
    kube_config.load_kube_config(config_file=str(path), client_configuration=configuration)
    return configuration


def _loose(doc: Mapping[str, Any]) -> Iterator[str]:
    """Yield what in a kubeconfig would switch off a protection by mistake; client-go refuses it as well."""
    for entry in doc.get("clusters") or ():
        name, cluster = entry["name"], entry.get("cluster") or {}
        for key in SWITCHES & cluster.keys():
            if not isinstance(value := cluster[key], bool | None):
                what = f"cluster {name!r}: {key} is {value!r:.80}, neither true nor false"
                yield f"{what}; write it without quotes, or leave it out"
        if "server" in cluster and not str(cluster["server"]).startswith(("https://", "http://")):
            yield f"cluster {name!r}: server {cluster['server']!r:.80} does not begin with https://"
    for entry in doc.get("users") or ():
        value = ((entry.get("user") or {}).get("exec") or {}).get("provideClusterInfo")
        if not isinstance(value, bool | None):
            yield f"user {entry['name']!r}: exec.provideClusterInfo is {value!r:.80}, neither true nor false"


def from_cluster() -> Configuration:
    """Return the configuration of a pod's service account, whose token is read again once a minute.

    Raises ConfigException, OSError.
    """
    configuration = _configuration()
    incluster_config.load_incluster_config(client_configuration=configuration)
    return configuration


def _configuration() -> Configuration:
    configuration = Configuration()
    configuration.retries = False  # the caller knows best when to retry
    configuration.socket_options = [*HTTPConnection.default_socket_options, *KEEPALIVE]
    return configuration


def _event(path: str, line: bytes) -> dict[str, Any] | UnreadableEventError:
    try:
        doc = strict_json.tolerant(line)
    except JsonError as error:
        return UnreadableEventError(f"watch {path}: {line[:80]!r} is not an event: {error}")
    if not isinstance(doc.get("object"), dict):
        return UnreadableEventError(f"watch {path}: {line[:80]!r} is not an event")
    return doc


def _refusal(request: Request, answer: urllib3.BaseHTTPResponse) -> StoreError:
    """Return the error of an answer, with the API server's message."""
    try:
        text = answer.data.decode(errors="replace")
        doc = strict_json.tolerant(text.encode())
        message = str(doc["message"]) if "message" in doc else text
    except (ValueError, urllib3.exceptions.HTTPError, OSError):
        message = answer.reason or ""
    what = f"{request}: HTTP {answer.status}: {message[:500].strip()}"
    match answer.status:
        case 404:
            return NotFoundError(what)
        case 409:
            return ConflictError(what)
        case 410:
            return GoneError(what, GONE)
    after = answer.headers.get("Retry-After", "")
    return ApiError(what, answer.status, min(float(after), LONGEST_RETRY) if after.isdecimal() else 0.0)


def _unanswered(request: Request, error: Exception) -> ApiError:
    """Return the error of a request without an answer."""
    unanswered = ApiError(f"{request}: {_reason(error)}")
    refused = isinstance(error, urllib3.exceptions.NewConnectionError)  # which is a TimeoutError of urllib3's too
    unanswered.timed_out = isinstance(error, urllib3.exceptions.TimeoutError) and not refused
    return unanswered


def _reason(error: BaseException) -> str:
    """Return the text of the innermost cause, which names what to fix."""
    inner = getattr(error, "reason", None) or error.__cause__
    return _reason(inner) if isinstance(inner, BaseException) else str(error) or type(error).__name__
