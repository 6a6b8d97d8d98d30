"""Asks a TF Serving server for images: over REST with nothing but Python, or over gRPC.

What is asked for changes nothing on the server, so a request whose answer did not come is sent again.
"""

import base64
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

_LATER = {408, 429, 502, 503, 504}  # HTTP: too busy, still loading, or too late
_LONGEST_PAUSE = 10.0  # seconds
_LARGEST_ANSWER = 1 << 30  # gRPC's own limit of 4 MB is 1,000 features of 1,000 images


class ServingError(RuntimeError):
    """The server gave no answer, however often it was asked."""


@dataclass(frozen=True)
class Client:
    """A model on a server.

    Attributes:
        server: `http://HOST:8501`, `https://…`, or `grpc://HOST:8500` (needs
            `keras_transfer[client]`; not encrypted).
        model: its name on the server.
        version: of the model; None is the newest.
        batch_size: images a request, at least 1.
        timeout: seconds that one request may take, > 0.
        retries: how often a request is sent again where the server is busy, too late or not there.
    """

    server: str
    model: str
    version: int | None = None
    batch_size: int = 16
    timeout: float = 30.0
    retries: int = 3
    _ask: object = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        if self.batch_size < 1 or not self.timeout > 0 or self.retries < 0:
            raise InputError(
                "batch_size must be 1 or more, timeout above 0 and retries 0 or more, not "
                f"{self.batch_size}, {self.timeout} and {self.retries}."
            )
        parts = urlsplit(self.server)
        if parts.scheme not in _WIRES or not parts.hostname:
            raise InputError(
                f"{self.server} is no server: give http://HOST:8501 or grpc://HOST:8500."
            )
        object.__setattr__(self, "_ask", _WIRES[parts.scheme](self))

    def predict(self, paths: Sequence) -> Iterator[dict]:
        """Asks what the model says of image files.

        Yields:
            Of each file, in order, `path`, `error` (None, or why there is no answer) and, by task:
            `label` and `score` of one class, and `scores`, name → probability or value. Of several heads
            these stand under `heads` and the head's name.

        Raises:
            InputError: no such model or signature on the server, or a file that cannot be read.
            ServingError: no answer.
        """
        for path, row in self._rows("serve_bytes", paths):
            error = row.pop("error", None) or None
            yield {"path": path, "error": error, **({} if error else _answer(row))}

    def features(self, paths: Sequence) -> Iterator[dict]:
        """Asks for what the backbone sees.

        Yields:
            Of each file `path`, `error` and `features`, a list of numbers (None after an error).

        Raises:
            InputError, ServingError: see `predict`.
        """
        for path, row in self._rows("features", paths):
            error = row["error"] or None
            yield {"path": path, "error": error, "features": None if error else row["features"]}

    def _rows(self, signature, paths):
        for start in range(0, len(paths), self.batch_size):
            batch = [str(path) for path in paths[start : start + self.batch_size]]
            rows = self._persist(signature, [_read(path) for path in batch])
            if len(rows) != len(batch):
                raise ServingError(
                    f"{self.server} gave {len(rows)} answers to {len(batch)} images."
                )
            yield from zip(batch, rows)

    def _persist(self, signature, contents):
        for attempt in range(self.retries + 1):
            try:
                return self._ask(signature, contents)
            except _Later as later:
                if attempt == self.retries:
                    raise ServingError(
                        f"{self.server} does not answer for {self.model} after {attempt + 1} tries: "
                        f"{later}"
                    ) from None
            # Twice as long each time, and not all clients at once.
            time.sleep(min(_LONGEST_PAUSE, 0.2 * 2**attempt) * random.uniform(0.5, 1.0))


class _Later(Exception):
    """Worth another try."""


def _read(path):
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _answer(row):
    """What `Client.predict` says of one row of outputs."""
    heads = {}
    for name in row:
        if name.startswith("scores"):
            end = name.removeprefix("scores")
            said = {key: row[key + end] for key in ("label", "score") if key + end in row}
            said["scores"] = dict(zip(row[f"class_names{end}"], row[name]))
            heads[end.removeprefix("_")] = said
    return heads[""] if set(heads) == {""} else {"heads": dict(sorted(heads.items()))}


def _rest(client):
    version = "" if client.version is None else f"/versions/{client.version}"
    url = f"{client.server.rstrip('/')}/v1/models/{quote(client.model, safe='')}{version}:predict"

    def ask(signature, contents):
        instances = [{"b64": base64.b64encode(content).decode()} for content in contents]
        body = json.dumps({"signature_name": signature, "instances": instances}).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=client.timeout) as answer:
                return json.load(answer)["predictions"]
        except urllib.error.HTTPError as error:
            said = f"{error.code} {error.reason}: {_said(error)}"
            if error.code in _LATER:
                raise _Later(said) from None
            raise InputError(f"{url} refuses the request: {said}") from None
        except (OSError, json.JSONDecodeError, KeyError) as error:
            raise _Later(getattr(error, "reason", None) or repr(error)) from None

    return ask


def _said(error):
    text = error.read().decode("utf-8", "replace")
    try:
        return json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        return text[:300]


def _grpc(client):
    try:
        import grpc
        from tensorflow import make_ndarray, make_tensor_proto
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
    except ImportError as error:
        raise InputError(
            f"gRPC needs {error.name}: pip install 'keras_transfer[client]', or ask over http://."
        ) from None

    limits = [(f"grpc.max_{way}_message_length", _LARGEST_ANSWER) for way in ("send", "receive")]
    channel = grpc.insecure_channel(urlsplit(client.server).netloc, limits)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    code = grpc.StatusCode
    later = {code.UNAVAILABLE, code.DEADLINE_EXCEEDED, code.RESOURCE_EXHAUSTED, code.ABORTED}

    def ask(signature, contents):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = client.model
        request.model_spec.signature_name = signature
        if client.version is not None:
            request.model_spec.version.value = client.version
        request.inputs["bytes"].CopyFrom(make_tensor_proto(contents))
        try:
            found = stub.Predict(request, timeout=client.timeout)
        except grpc.RpcError as error:
            said = f"{error.code().name}: {error.details()}"
            if error.code() in later:
                raise _Later(said) from None
            raise InputError(f"{client.server} refuses the request: {said}") from None
        outputs = {name: _plain(make_ndarray(value)) for name, value in found.outputs.items()}
        return [dict(zip(outputs, row)) for row in zip(*outputs.values())]

    return ask


def _plain(array):
    """Lists of numbers and of text."""
    if array.dtype == object:
        return [
            one.decode("utf-8", "replace") if isinstance(one, bytes) else _plain(one)
            for one in array
        ]
    return array.tolist()


_WIRES = {"http": _rest, "https": _rest, "grpc": _grpc}
