"""docs/tutorial.md from top to bottom, on the demo's examples of each kind."""

import shlex
from pathlib import Path

import documents
import pytest
from typer.testing import CliRunner

from keras_transfer.cli.main import app

# For a test, shorter.
SHORT = {"compare": "--epochs 2", "lp_ft": "--epochs 3"}
KINDS = {"images": "", "sounds": "--audio", "texts": "--text"}


@pytest.mark.large  # CI runs the demo
@pytest.mark.parametrize("kind", KINDS)
def test_every_command(kind, tmp_path, monkeypatch):
    if kind != "images":
        pytest.importorskip({"sounds": "soundfile", "texts": "tensorflow_text"}[kind])
    monkeypatch.chdir(tmp_path)
    for block in documents.blocks("bash"):
        if block.file != "docs/tutorial.md":
            continue
        for words in documents.commands(block.text):
            line = shlex.join(words[1:]).replace("images", kind)
            more = " ".join(value for key, value in SHORT.items() if key in line)
            if line.startswith("demo"):
                more = KINDS[kind]
            if "val/7" in line:
                classes = Path(f"tutorial/{kind}/target/val").iterdir()
                line = line.replace("val/7", f"val/{min(x.name for x in classes)}")
            done = CliRunner().invoke(app, shlex.split(f"{line} {more}"))
            assert done.exit_code == 0, (line, done.output[-2000:])
    assert Path("tutorial/first/report.html").is_file()
    assert Path("tutorial/gain/comparison.png").is_file()
    assert Path("comparison.html").is_file()
    assert Path("tutorial/second/export/1/saved_model.pb").is_file()
