"""What a command does before its work: imports, the network, and nothing twice."""

import subprocess
import sys

from conftest import write_colours
from typer.testing import CliRunner


def printed(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_the_options_of_the_advisor_are_checked_without_keras():
    assert printed(
        "import sys, keras_transfer.advisor.api\n"
        "print([name for name in ('keras', 'tensorflow') if name in sys.modules])"
    ) == ("[]\n")


def test_keras_is_imported_without_what_no_command_uses():
    code = (
        "import gc, sys; from keras_transfer.cli.options import load_keras; load_keras()\n"
        "print([name for name in ('IPython', 'pandas', 'jax') if name in sys.modules])\n"
        "print(gc.isenabled(), gc.get_freeze_count() > 100_000)"
    )
    assert printed(code) == "[]\nTrue True\n"


def test_a_frozen_backbone_is_built_once(tmp_path, real_weights, cache, monkeypatch):
    """Evidence and training read the same network, of two backbones here."""
    from keras_transfer.cli.main import app
    from keras_transfer.models.sources import applications

    built, original = [], applications._application

    def counted(spec, *args):
        built.append(spec.name)
        return original(spec, *args)

    monkeypatch.setattr(applications, "_application", counted)
    data = write_colours(tmp_path / "data")
    command = ["train", str(data), "--out", str(tmp_path / "run"), "--image-size", "64"]
    command += ["--strategy", "feature_extraction", "--backbone"]
    result = CliRunner().invoke(app, [*command, "mobilenet_0.25,mobilenet_v2_0.35"])
    assert result.exit_code == 0, result.output
    assert sorted(built)[:2] == ["mobilenet_0.25", "mobilenet_v2_0.35"]
    together = "mobilenet_0.25+mobilenet_v2_0.35" in (tmp_path / "run/config.yaml").read_text()
    assert len(built) == (2 if together else 3)
