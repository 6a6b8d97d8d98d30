"""A client for TF Serving: over REST with the standard library and Pillow alone, or over gRPC.

Requests change nothing on the server, so a request without an answer is sent again. They use only the
signatures `serve_bytes` and `features`, whose input has had the same name since 0.1.
"""

import base64
import http.client
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

from keras_transfer.errors import InputError
from keras_transfer.modalities import modality_of_files
from keras_transfer.utils.extras import require
from keras_transfer.utils.files import decode_text

_TEMPORARY = {408, 429, 502, 503, 504}  # HTTP: too busy, still loading, or too late
_MAX_PAUSE = 10.0  # seconds
_MAX_MESSAGE = 1 << 30  # bytes; gRPC's default of 4 MB holds 1,000 features of 1,000 images


class ServingError(RuntimeError):
    """The server did not answer, even after all retries."""


@dataclass(frozen=True)
class Client:
    """A model on a server.

    Attributes:
        server: `http://HOST:8501`, `https://…`, or `grpc://HOST:8500` (not encrypted; needs
            `keras_transfer[client]`).
        model: its name on the server.
        version: its version; the newest by default.
        batch_size: images per request, at least 1.
        timeout: seconds that a request may take, > 0.
        retries: how often a request is repeated if the server is busy, too slow or unreachable.
    """

    server: str
    model: str
    version: int | None = None
    batch_size: int = 16
    timeout: float = 30.0
    retries: int = 3
    _send: object = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        if self.batch_size < 1 or not self.timeout > 0 or self.retries < 0:
            raise InputError(
                "batch_size must be at least 1, timeout above 0 and retries at least 0, not "
                f"{self.batch_size}, {self.timeout} and {self.retries}."
            )
        scheme = _scheme(self.server)
        if scheme not in _PROTOCOLS:
            raise InputError(
                f"Invalid server '{self.server}'. Pass http://HOST:8501 or grpc://HOST:8500."
            )
        object.__setattr__(self, "_send", _PROTOCOLS[scheme](self))

    def predict(self, paths: Sequence) -> Iterator[dict]:
        """Request the model's scores for files; those that it cannot read are converted first.

        Yields:
            For each file, in order: `path`; `error` (None, or why there is no answer); and by task
            `label` and `score` of one class, and `scores`, name → probability or value. With several
            heads these are under `heads` and the head's name.

        Raises:
            InputError: if the server has no such model or signature, or a file cannot be read.
            ServingError: if the server does not answer.
        """
        for path, row in self._rows("serve_bytes", paths):
            error = row.pop("error", None) or None
            yield {"path": path, "error": error, **({} if error else _by_head(row))}

    def features(self, paths: Sequence) -> Iterator[dict]:
        """Request the backbone's features of image files.

        Yields:
            For each file `path`, `error` and `features`, a list of numbers (None after an error).

        Raises:
            InputError, ServingError: see `predict`.
        """
        for path, row in self._rows("features", paths):
            error = row["error"] or None
            yield {"path": path, "error": error, "features": None if error else row["features"]}

    def _rows(self, signature, paths):
        modality = modality_of_files(paths)
        for start in range(0, len(paths), self.batch_size):
            batch = [str(path) for path in paths[start : start + self.batch_size]]
            contents = [modality.for_server(_read(path)) for path in batch]
            rows = self._send_with_retries(signature, contents)
            if len(rows) != len(batch):
                raise ServingError(
                    f"{self.server} returned {len(rows)} answers for {len(batch)} images."
                )
            if not all(isinstance(row, dict) for row in rows):
                raise InputError(
                    f"{self.model} on {self.server} is not an export of keras_transfer: the outputs of "
                    f"its signature {signature} have no names."
                )
            yield from zip(batch, rows)

    def _send_with_retries(self, signature, contents):
        for attempt in range(self.retries + 1):
            try:
                return self._send(signature, contents)
            except _Temporary as error:
                if attempt == self.retries:
                    tries = f"{attempt + 1} {'try' if attempt == 0 else 'tries'}"
                    raise ServingError(
                        f"{self.server} does not answer for {self.model} after {tries}: {error}"
                    ) from None
            # Twice as long each time, at random, so that clients do not return all at once.
            time.sleep(min(_MAX_PAUSE, 0.2 * 2**attempt) * random.uniform(0.5, 1.0))


def _scheme(server) -> str | None:
    """Return the scheme of an address that has a host, a port that is a number, and no spaces."""
    try:
        parts = urlsplit(server)
        complete = parts.hostname and parts.port != 0 and not any(map(str.isspace, server))
    except ValueError:
        return None
    return parts.scheme if complete else None


class _Temporary(Exception):
    """A failure after which the request is worth repeating."""


def _read(path):
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from None


def _by_head(row):
    """Convert one row of outputs to what `Client.predict` yields."""
    heads = {}
    for name in row:
        if name.startswith("scores"):
            end = name.removeprefix("scores")
            head = {key: row[key + end] for key in ("label", "score") if key + end in row}
            head["scores"] = dict(zip(row[f"class_names{end}"], row[name]))
            heads[end.removeprefix("_")] = head
    return heads[""] if set(heads) == {""} else {"heads": dict(sorted(heads.items()))}


def _rest(client):
    version = "" if client.version is None else f"/versions/{client.version}"
    url = f"{client.server.rstrip('/')}/v1/models/{quote(client.model, safe='')}{version}:predict"

    def send(signature, contents):
        # Rows without an input name: a signature with one input accepts them whatever its name.
        instances = [{"b64": base64.b64encode(content).decode()} for content in contents]
        body = json.dumps({"signature_name": signature, "instances": instances}).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=client.timeout) as response:
                return json.load(response)["predictions"]
        except urllib.error.HTTPError as error:
            reason = f"{error.code} {error.reason}: {_http_reason(error)}"
            if error.code in _TEMPORARY:
                raise _Temporary(reason) from None
            raise InputError(f"{url} rejects the request: {reason}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _Temporary(getattr(error, "reason", None) or repr(error)) from None
        except http.client.BadStatusLine:  # such as that of gRPC
            raise _Temporary("its answer is not HTTP; REST usually has port 8501") from None
        except http.client.HTTPException as error:
            raise _Temporary(repr(error)) from None

    return send


def _http_reason(error):
    text = error.read().decode("utf-8", "replace")
    try:
        return json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        return text[:300]


def _grpc(client):
    for module in ("grpc", "tensorflow_serving"):
        require(module, "gRPC (REST at http:// does not)")
    import grpc
    from tensorflow import make_ndarray, make_tensor_proto
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    limits = [(f"grpc.max_{way}_message_length", _MAX_MESSAGE) for way in ("send", "receive")]
    channel = grpc.insecure_channel(urlsplit(client.server).netloc, limits)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    code = grpc.StatusCode
    temporary = {code.UNAVAILABLE, code.DEADLINE_EXCEEDED, code.RESOURCE_EXHAUSTED, code.ABORTED}

    def send(signature, contents):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = client.model
        request.model_spec.signature_name = signature
        if client.version is not None:
            request.model_spec.version.value = client.version
        request.inputs["bytes"].CopyFrom(make_tensor_proto(contents))
        try:
            response = stub.Predict(request, timeout=client.timeout)
        except grpc.RpcError as error:
            reason = f"{error.code().name}: {error.details()}"
            if error.code() in temporary:
                raise _Temporary(reason) from None
            raise InputError(f"{client.server} rejects the request: {reason}") from None
        outputs = {name: _to_json(make_ndarray(value)) for name, value in response.outputs.items()}
        return [dict(zip(outputs, row)) for row in zip(*outputs.values())]

    return send


def _to_json(array):
    """Return an array as lists of numbers and text."""
    if array.dtype == object:
        return [decode_text(one) if isinstance(one, bytes) else _to_json(one) for one in array]
    return array.tolist()


_PROTOCOLS = {"http": _rest, "https": _rest, "grpc": _grpc}
