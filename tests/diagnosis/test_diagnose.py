"""`check --deep` and `diagnose`: the list of problems, from the features of a backbone to training."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import raises, write_image

import keras_transfer as kt
from keras_transfer.cli.main import app
from keras_transfer.data.corrections import FIELDS


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Images of two colors, of which one has the other's label."""
    folder = tmp_path_factory.mktemp("shapes")
    for name, color in {"red": (200, 40, 40), "blue": (40, 40, 200)}.items():
        for i in range(25):
            write_image(folder / name / f"{i}.png", color, size=(32, 32), noise=60, seed=i)
    write_image(folder / "red" / "wrong.png", (40, 40, 200), size=(32, 32), noise=60, seed=99)
    return folder


def test_a_wrong_label_is_listed_and_corrected(shapes, tmp_path, capsys, real_weights, monkeypatch):
    from typer.testing import CliRunner

    from keras_transfer.features import known

    file = tmp_path / "list.csv"
    command = ["check", str(shapes), "--deep", "--image-size", "64", "--write-list", str(file)]
    result = CliRunner().invoke(app, [*command, "--backbone", "mobilenet_0.25", "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    first = document["diagnosis"]["problems"][0]
    assert (first["path"], first["label"], first["suggested"]) == ("red/wrong.png", "red", "blue")
    assert first["problem"] == "label" and 0 < first["score"] <= 1
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert tuple(rows[0]) == FIELDS and rows[0]["action"] == ""
    assert [row["path"] for row in rows] == [p["path"] for p in document["diagnosis"]["problems"]]

    data = kt.data.open_data(shapes, progress=False)
    assert known.caution(data) is None  # one of 51
    monkeypatch.setattr(known, "_MANY_WRONG", 0.0)
    assert "of the labels are wrong" in known.caution(data)

    file.write_text(
        file.read_text().replace(f"{rows[0]['score']},,", f"{rows[0]['score']},,relabel", 1)
    )
    data = kt.data.open_data(shapes, use_list=file)
    assert sum(counts["red"] for counts in data.counts.values()) == 25
    again = CliRunner().invoke(app, ["check", str(shapes), "--use-list", str(file), "--json"])
    assert json.loads(again.stdout)["counts"] == data.counts


def test_a_run_on_a_corrected_dataset_resumes_and_reports_on_it(shapes, tmp_path):
    from conftest import tiny_backbone

    from keras_transfer.models.builders import build_model, head_for

    file = tmp_path / "list.csv"
    file.write_text("path,suggested,action\nred/wrong.png,blue,relabel\nred/3.png,,drop\n")
    data = kt.data.open_data(shapes, use_list=file)
    model = build_model(tiny_backbone(), head_for(data))
    config = {"data": str(shapes), "use_list": str(file), "seed": 0}
    run = kt.Trainer(model, "from_scratch", overrides={"epochs": 1}).fit(
        data, tmp_path / "run", config=config
    )
    from keras_transfer.reporting.run_report import _open_own_data

    own, problem = _open_own_data(run, None)
    assert problem is None
    assert own.fingerprint() == data.fingerprint()


def test_what_was_seen_is_read_without_a_network(shapes, cache, real_weights, monkeypatch):
    """The second time, the same features come without Keras; another example needs it."""
    from keras_transfer.diagnosis import seen

    data = kt.data.open_data(shapes, progress=False)
    how = ("mobilenet_0.25", 64, "auto")
    assert not seen.is_seen(data, *how)
    first = seen.see(data, *how)
    code = (
        "import sys, numpy as np; from keras_transfer.diagnosis.api import diagnose\n"
        "from keras_transfer.data import open_data\n"
        f"found = diagnose(open_data({str(shapes)!r}, progress=False), backbone='mobilenet_0.25', image_size=64)\n"
        "assert found.examples == 51 and not {'keras', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    monkeypatch.setattr(seen, "build_backbone", None)
    again = seen.see(data, *how)
    assert np.array_equal(again.features, first.features)
    assert [b.tolist() for b in again.blocks] == [b.tolist() for b in first.blocks]
    assert not seen.is_seen(data, "mobilenet_0.25", 32, "auto")
    data.examples["train"] = data.examples["train"].take(np.arange(9))
    assert not seen.is_seen(data, *how)


def test_images_of_four_channels_are_refused_in_one_line(tmp_path):
    from keras_transfer.diagnosis.near import near_names

    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(2):
            np.save(tmp_path / name / f"{i}.npy", np.full((30, 30, 4), 90 * i + 60, "uint8"))
    data = kt.data.open_data(tmp_path, progress=False)
    for ask in (kt.diagnose, near_names):
        with raises("4 of 4 are not"):
            ask(data, backbone="mobilenet_0.25")


def test_invalid_questions(shapes):
    from typer.testing import CliRunner

    for options, problem in (
        (["--write-list", "x.csv"], "--write-list needs --deep"),
        (["--deep", "--backbone", "mobilnet"], "mobilnet"),
    ):
        result = CliRunner().invoke(app, ["check", str(shapes), *options])
        assert result.exit_code and problem in str(result.exception)
    with raises("mobilnet"):
        kt.diagnose(kt.data.open_data(shapes, progress=False), backbone="mobilnet")


@pytest.mark.parametrize(
    "options, problem",
    [
        (["--deep"], "Features of texts need an encoder: name one with --backbone"),
        (["--sheet", "s.png"], "A contact sheet shows images; texts have none"),
    ],
)
def test_questions_that_texts_do_not_answer_are_refused_before_the_report(
    tmp_path, options, problem
):
    from typer.testing import CliRunner

    rows = [f"{word} film {i},{word}" for word in ("good", "bad") for i in range(5)]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *rows]))
    for more in ([], ["--json"]):
        result = CliRunner().invoke(app, ["check", str(tmp_path / "texts.csv"), *options, *more])
        assert problem in str(result.exception) and result.stdout == ""


def test_several_heads(shapes, tmp_path, real_weights):
    """Each head is judged alone, and a suggestion names the labels of all heads."""
    lines = [
        f"{path},{path.parent.name},{1 + (path.parent.name == 'red')}\n"
        for path in sorted(shapes.glob("*/*.png"))
    ]
    (tmp_path / "table.csv").write_text("path,color,size\n" + "".join(lines))
    columns = {"heads": {"color": {"label_column": "color"}, "size": {"targets": ["size"]}}}
    data = kt.data.open_data(tmp_path / "table.csv", columns=columns)
    found = kt.diagnose(data, backbone="mobilenet_0.25", image_size=64)
    assert set(found.labels) == {"color", "size"}
    wrong = [p for p in found.problems if p.path.endswith("wrong.png")]
    assert any(p.suggested == "color: blue; size: size=2" for p in wrong)
    assert found.labels["color"].judged == len(lines)
