"""The client against a server that runs TensorFlow alone, over both protocols, and without a server."""

import http.client
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import tiny_backbone, write_image

from keras_transfer import evaluation, export
from keras_transfer.errors import InputError
from keras_transfer.export import client as client_module
from keras_transfer.export.client import Client, ServingError
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification

pytestmark = pytest.mark.compat

SERVER = Path(__file__).parents[1] / "tf_serving_stand_in.py"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Return (scheme → address, results of `predict` for five images, their files and a broken one)."""
    pytest.importorskip("tensorflow_serving")
    folder = tmp_path_factory.mktemp("served")
    keras.utils.set_random_seed(3)
    model = build_model(tiny_backbone(), Classification(["ant", "bee", "füße"]), image_size=32)
    export.saved_model(model, folder / "flowers" / "1")
    rng = np.random.default_rng(0)
    files = [folder / f"{i}.{kind}" for i, kind in enumerate(["png", "tif", "png", "bmp", "png"])]
    for i, file in enumerate(files):
        write_image(file, rng.integers(0, 256, 3), size=(40 + i, 60), seed=i)
    predictions, _ = evaluation.predict(model, files)
    broken = folder / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff broken")
    server = subprocess.Popen(
        [sys.executable, SERVER, folder / "flowers", "flowers"], stdout=subprocess.PIPE, text=True
    )
    try:
        ports = json.loads(server.stdout.readline())
        addresses = {
            "http": f"http://127.0.0.1:{ports['rest']}",
            "grpc": f"grpc://127.0.0.1:{ports['grpc']}",
        }
        yield addresses, predictions, [*files, broken]
    finally:
        server.kill()
        server.wait()


@pytest.fixture(params=["http", "grpc"])
def wire(request):
    if request.param == "grpc":
        pytest.importorskip("tensorflow_serving")
    return request.param


def test_answers_are_those_of_predict(served, wire):
    addresses, predictions, files = served
    found = list(Client(addresses[wire], "flowers", version=1, batch_size=2).predict(files))
    assert [one["path"] for one in found] == [str(file) for file in files]
    for one, prediction in zip(found, predictions):
        assert one["error"] is None and one["label"] == prediction.label
        assert one["score"] == pytest.approx(prediction.score, abs=2e-3)
        assert one["scores"] == pytest.approx(dict(prediction.top), abs=2e-3)
    assert found[-1] == {"path": str(files[-1]), "error": export_error()}


def export_error():
    from keras_transfer.modalities.image.modality import MODALITY

    return MODALITY.unreadable


def test_features(served, wire):
    addresses, _, files = served
    found = list(Client(addresses[wire], "flowers").features(files[-2:]))
    assert len(found[0]["features"]) == 16 and found[0]["error"] is None
    assert found[1]["features"] is None and found[1]["error"]


def test_requests_to_an_unavailable_server_are_repeated(served, wire, monkeypatch):
    addresses, _, files = served
    pauses = []
    monkeypatch.setattr(client_module.time, "sleep", pauses.append)
    (once,) = files[:1]
    with pytest.raises(ServingError, match=r"flaky after 1 try: .*still loading"):
        next(Client(addresses[wire], "flaky", retries=0).predict([once]))
    assert pauses == []
    assert next(Client(addresses[wire], "flaky", retries=1).predict([once]))["error"] is None
    assert len(pauses) == 1 and 0.1 <= pauses[0] <= 0.2


def test_a_request_times_out(served, wire):
    addresses, _, files = served
    with pytest.raises(ServingError, match="after 1 try"):  # it would answer after two seconds
        next(Client(addresses[wire], "slow", timeout=0.3, retries=0).predict(files[:1]))


def test_rejected_requests_are_not_repeated(served, wire, monkeypatch):
    addresses, _, files = served
    monkeypatch.setattr(client_module.time, "sleep", lambda seconds: pytest.fail("repeated"))
    for client in (Client(addresses[wire], "roses"), Client(addresses[wire], "flowers", version=9)):
        with pytest.raises(InputError, match="Servable not found"):
            next(client.predict(files[:1]))


def test_an_unreachable_server(wire, tmp_path):
    write_image(tmp_path / "p.png", (1, 2, 3))
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        address = f"{wire}://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServingError, match="does not answer for flowers after 1 try"):
            next(Client(address, "flowers", timeout=5, retries=0).predict([tmp_path / "p.png"]))


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (b"\x00\x00\x18\x04\x00\x00\x00\x00\x00", ServingError, "its answer is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{", ServingError, "IncompleteRead"),
        (b"HTTP/1.1 200 OK\r\n\r\n[]", ServingError, "does not answer"),
        (b"HTTP/1.1 200 OK\r\n\r\n\xff", ServingError, "does not answer"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"predictions": [[1]]}', InputError, "not an export"),
    ],
)
def test_a_server_that_is_not_tf_serving(tmp_path, answer, error, said):
    write_image(tmp_path / "p.png", (1, 2, 3))
    with socket.create_server(("127.0.0.1", 0)) as server:

        def reply():
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as request:
                # All of it: with bytes left unread, closing resets the connection.
                request.readline()
                request.read(int(http.client.parse_headers(request)["Content-Length"]))
                connection.sendall(answer)

        threading.Thread(target=reply, daemon=True).start()
        client = Client(f"http://127.0.0.1:{server.getsockname()[1]}", "m", timeout=5, retries=0)
        with pytest.raises(error, match=said):
            next(client.predict([tmp_path / "p.png"]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"server": "localhost:8501"}, "Invalid server"),
        ({"server": "ftp://here"}, "Invalid server"),
        ({"server": "http://localhost:rest"}, "Invalid server"),
        ({"server": "http://[::1"}, "Invalid server"),
        ({"server": "http://local host:8501"}, "Invalid server"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"timeout": 0}, "timeout above 0"),
        ({"retries": -1}, "retries at least 0"),
    ],
)
def test_invalid_clients(change, said):
    with pytest.raises(InputError, match=said):
        Client(**{"server": "http://localhost:8501", "model": "m", **change})


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="Cannot read"):
        next(Client("http://localhost:1", "m").predict([tmp_path / "none.jpg"]))


def test_several_heads_are_named():
    row = {
        "scores_sign": [0.75, 0.25], "class_names_sign": ["a", "b"], "label_sign": "a",
        "score_sign": 0.75, "scores_age": [31.5], "class_names_age": ["years"],
    }  # fmt: skip
    assert client_module._by_head(row) == {
        "heads": {
            "age": {"scores": {"years": 31.5}},
            "sign": {"label": "a", "score": 0.75, "scores": {"a": 0.75, "b": 0.25}},
        }
    }


def test_the_command(served, capsys):
    from typer.testing import CliRunner

    from keras_transfer.cli.main import app

    addresses, predictions, files = served
    result = CliRunner().invoke(app, ["ask", addresses["http"], "flowers", *map(str, files)])
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [one.get("label") for one in found] == [*(p.label for p in predictions), None]
    assert "1 of 6 images was not answered" in result.stderr
