"""A run on texts, as its user sees it: predictions, evidence, report, exports, on the command line."""

import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import raises, require_format, tiny_bert

from keras_transfer.data import from_table
from keras_transfer.evaluation.occlusion import occlude
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.schedules.phases import Phase, Schedule
from keras_transfer.training.trainer import Trainer

pytest.importorskip("tensorflow_text", reason="tensorflow-text is not installed")

NAMES = ("blue", "green", "red")
FILLER = ("one", "of", "the", "walls", "is", "in", "a", "room", "!")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(run, data) of a tiny encoder that has learned which word names the class."""
    folder, rng = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
    rows = ["text,label"]
    for _ in range(100):
        for name in NAMES:
            words = list(rng.choice(FILLER, rng.integers(2, 11)))
            words.insert(int(rng.integers(0, len(words) + 1)), name)
            rows.append(f"{' '.join(words)},{name}")
    (folder / "t.csv").write_text("\n".join(rows))
    data = from_table(folder / "t.csv", progress=False)
    keras.utils.set_random_seed(0)
    model = build_model(tiny_bert(), Classification(NAMES))
    schedule = Schedule("s", (Phase("all", "none", 12, 1e-2),))
    run = Trainer(model, schedule, batch_size=16).fit(data, folder / "run")
    return run, data


def test_the_planted_word_is_the_evidence(trained):
    run, data = trained
    assert run.metrics["val"]["accuracy"] > 0.8
    seen = right = 0
    for part in [data.examples["val"].take(np.arange(30))]:
        for row, one in enumerate(occlude(run.model, part)):
            text, name = part.images.decoded(row), NAMES[part.labels[row]]
            assert "".join(one.parts) == text
            weights = one.weights(int(part.labels[row]))
            assert np.abs(weights).max() <= 1
            seen += 1
            right += one.parts[int(weights.argmax())].strip() == name
    assert right > 0.9 * seen


def test_the_report_shows_marked_texts(trained):
    from keras_transfer.reporting import write_report

    run, data = trained
    page = write_report(run, data).read_text(encoding="utf-8")
    assert "accuracy of TF-IDF + logistic regression" in page
    words = re.findall(r'<span style="--prediction:([\d.]+)[^"]*">([^<]+)</span>', page)
    strongest = [word.strip() for weight, word in words if float(weight) == 1]
    assert set(strongest) & set(NAMES)
    assert "Evidence for the prediction:" in page and "the more the score falls without it" in page
    assert " px" not in page


def command(*arguments):
    """(exit code, what the command prints)."""
    from typer.testing import CliRunner

    from keras_transfer.cli.main import app

    result = CliRunner().invoke(app, [str(one) for one in arguments])
    return result.exception, result.stdout


def test_texts_are_predicted_from_the_command_line_and_from_lines(trained, tmp_path):
    run, _ = trained
    _, printed = command("predict", run.path, "a red room", "walls of the green /room/ !")
    rows = printed.splitlines()
    assert rows[0].startswith("path,label,score")
    assert [row.split(",")[:2] for row in rows[1:]] == [
        ["a red room", "red"],
        ["walls of the green /room/ !", "green"],
    ]
    lines = tmp_path / "lines.txt"
    lines.write_bytes("a red room\n\na blüe room \xff\n".encode("latin-1") + b"in the blue\n")
    _, printed = command("predict", run.path, "--lines", lines, "--json")
    found = json.loads(printed)
    assert [one["label"] for one in found["predictions"]] == ["red", "blue"]
    assert [one["reason"][:9] for one in found["skipped"]] == ["empty tex", "not UTF-8"]
    (tmp_path / "one.txt").write_text("is in the red room")
    _, printed = command("predict", run.path, tmp_path / "one.txt")
    assert printed.splitlines()[1].split(",")[1] == "red"
    table = tmp_path / "texts.csv"
    table.write_text("text\na red room\n")
    for arguments, problem in (
        (["--lines", tmp_path / "no.txt"], "no such file"),
        ([], "no examples given"),
        (["--lines", lines, lines], "Pass files or --lines, not both"),
        ([table], "one per line, and pass it with --lines FILE"),
    ):
        error, _ = command("predict", run.path, *arguments)
        assert problem in str(error)


def test_only_texts_can_be_typed(tmp_path):
    from keras_transfer.data.evaluation_data import examples_to_predict
    from keras_transfer.modalities import find_modality

    with raises("A file of lines contains texts, but the model reads images"):
        examples_to_predict([], find_modality("image"), tmp_path)
    with raises("no such file or folder: what is this"):
        examples_to_predict(["what is this"], find_modality("image"))
    good, skipped = examples_to_predict(["what is this", ""], find_modality("text"))
    assert good.names == ["what is this"] and [one.reason for one in skipped] == ["empty text"]


ANSWERED = ["😀 in a red room", "a\x01b\x7f", "x" * 100_000, "مرحبا بالعالم", "red " * 30_000]
ANSWERED.append("in a blue\x1fa blue room")  # a pair


def test_a_saved_model_answers_strings_and_each_unreadable_one_has_an_error(trained, tmp_path):
    import tensorflow as tf

    from keras_transfer.export import export_run

    run, data = trained
    exported = export_run(run, out=tmp_path / "1", data=data)
    assert exported.parity.agreement["output"] == 1 and exported.parity.difference < 1e-5
    loaded = tf.saved_model.load(str(exported.path))
    texts = [*(text.encode() for text in ANSWERED), b"\xff\xfe", b" \n", b"a green room"]
    for signature, name in (("serve_bytes", "bytes"), ("serving_default", "texts")):
        answer = loaded.signatures[signature](**{name: tf.constant(texts)})
        errors = answer["error"].numpy().tolist()
        assert errors == [b""] * 6 + [b"is not UTF-8", b"is empty", b""]
        assert answer["label"].numpy().tolist()[-3:] == [b"", b"", b"green"]
        assert (answer["scores"].numpy()[6:8] == 0).all()
        assert answer["label"].numpy()[5] == b"blue"
        assert answer["class_names"].numpy()[0].tolist() == [b"blue", b"green", b"red"]
    alone = loaded.signatures["serve_bytes"](bytes=tf.constant(texts[:1]))["scores"]
    np.testing.assert_allclose(alone[0], answer["scores"][0], atol=1e-5)
    card = (exported.path / "README.md").read_text()
    for title in ("# tiny_bert", "## Data", "## Quality", "## Limits"):
        assert "image" not in card.partition(title)[2].partition("\n## ")[0], title
    assert "at most 16 tokens" in card and " px" not in card


WITHOUT_KERAS = """
import glob, importlib.util, os, sys
sys.modules.update(keras=None, tf_keras=None)  # whoever imports them fails
import tensorflow as tf

package = os.path.dirname(importlib.util.find_spec("tensorflow_text").origin)
for library in glob.glob(os.path.join(package, "**", "_*.so"), recursive=True):
    tf.load_op_library(library)
serve = tf.saved_model.load(sys.argv[1]).signatures["serve_bytes"]
print(serve(bytes=tf.constant([b"a red room"]))["label"].numpy()[0].decode())
"""


def test_a_saved_model_is_served_without_keras(trained, tmp_path):
    from keras_transfer.export import saved_model

    run, _ = trained
    folder = saved_model(run.model, tmp_path / "1")
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_KERAS, folder], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["red"]


def test_the_card_on_the_hub_shows_no_image(trained, tmp_path):
    from keras_transfer.export import export_run

    run, data = trained
    card = export_run(run, "hub", out=tmp_path / "hub", data=data).path / "README.md"
    assert "kt.load_model(" in card.read_text() and "preview.png" not in card.read_text()


@pytest.mark.parametrize(
    "format",
    [
        # `test_tfidf.py` exports texts in it.
        pytest.param("onnx", marks=pytest.mark.large),
        "openvino",
        "litert",
        "tfjs",
    ],
)
def test_other_formats_take_token_ids(trained, tmp_path, format):
    from keras_transfer.export import export_run

    require_format(format)
    run, data = trained
    exported = export_run(run, format, out=tmp_path / "1", data=data)
    assert exported.parity.agreement["output"] == 1 and exported.parity.difference < 1e-5
    described = json.loads((exported.path / "tokenizer.json").read_text())
    assert described["special"]["start"] == {"token": "[CLS]", "id": 2}
    words = (exported.path / "vocab.txt").read_text().splitlines()
    assert words[2] == "[CLS]" and described["most_tokens"] == 16
    if format == "onnx":
        with raises("int8 is not for texts"):
            export_run(run, format, int8=True, out=tmp_path / "2", data=data)
