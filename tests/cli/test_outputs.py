"""Outputs that are not plain files, and those that cannot be written."""

import io
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import raises, tiny_backbone, write_colours

from keras_transfer.utils.files import check_output, new_folder, write_file, write_text


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder with `data`, a finished run `run`, and a file of its own model."""
    import keras

    import keras_transfer as kt

    folder = tmp_path_factory.mktemp("outputs")
    data = kt.data.from_directory(write_colours(folder / "data"), progress=False)
    keras.utils.set_random_seed(0)
    model = kt.build_model(tiny_backbone(), kt.Classification(data.class_names), image_size=32)
    kt.Trainer(model, "from_scratch", epochs=1, batch_size=8).fit(data, folder / "run")
    return folder


# Command → its arguments, in which RUN, DATA, IMAGE and NEW stand for paths.
COMMANDS = {
    "check": "check DATA",
    "advise": "advise DATA --backbones mobilenet_0.25",
    "train": "train DATA --out NEW --backbone mobilenet_0.25 --strategy feature_extraction",
    "evaluate": "evaluate RUN DATA",
    "predict": "predict RUN IMAGE",
    "report": "report RUN --out NEW.html",
    "export": "export RUN --out NEW/1",
    "ask": "ask http://localhost:1 flowers IMAGE",
    "compare": "compare DATA --out NEW --backbone mobilenet_0.25",
    "adapt": "adapt DATA DATA --method dann --out NEW --backbone mobilenet_0.25",
    "tune": "tune DATA --out NEW --backbone mobilenet_0.25",
    "find-rate": "find-rate DATA --out NEW.png --backbone mobilenet_0.25",
    "schedule": "schedule lp_ft",
    "backbones": "backbones",
    "cache": "cache",
    "doctor": "doctor --json",
    "demo": "demo --out NEW",
    "--help": "--help",
}
# Those that finish without training.
SHORT = ["check", "evaluate", "predict", "report", "export", "schedule", "backbones", "cache"]
SHORT += ["doctor", "--help"]


@pytest.fixture
def run_command(shared, tmp_path, monkeypatch):
    """Run a command in this process; return exit code and lines on stderr."""
    from keras_transfer.cli.main import main

    def run(text, stdout="/dev/null"):
        places = {
            "RUN": shared / "run",
            "DATA": shared / "data",
            "IMAGE": shared / "data" / "red" / "0.png",
        }
        words = [str(places.get(w, w.replace("NEW", str(tmp_path / "new")))) for w in text.split()]
        stderr = io.TextIOWrapper(io.BytesIO(), write_through=True)
        stream = stdout and Path(stdout).open("w")  # noqa: SIM115 (as long as the process)
        monkeypatch.setattr(sys, "argv", ["keras-transfer", *words])
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stderr)
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, stderr.buffer.getvalue().decode().splitlines()

    return run


def check_one_error(result, words):
    code, lines = result
    errors = [line for line in lines if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and words in errors[0], lines
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_closed_stdout_is_an_error_before_any_work(run_command, tmp_path, command):
    result = run_command(COMMANDS[command], stdout=None)
    check_one_error(result, "standard output is closed")
    assert len(result[1]) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_closed_stderr_ends_with_exit_code_2(monkeypatch, command):
    from keras_transfer.cli.main import main

    monkeypatch.setattr(sys, "argv", ["keras-transfer", *COMMANDS[command].split()])
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2


@pytest.mark.parametrize("command", SHORT)
def test_a_full_stdout_is_one_line(run_command, command):
    check_one_error(run_command(COMMANDS[command], "/dev/full"), "No space left on device")


UNWRITABLE = {
    "predict": "predict RUN IMAGE --out NEW/x.csv",
    "report": "report RUN --out NEW/x.html",
    "schedule": "schedule lp_ft --out NEW/x.yaml",
    "check": "check DATA --sheet NEW/x.png",
    "advise": "advise DATA --plot NEW/x.png",
    "find-rate": "find-rate DATA --out NEW/x.png",
}


@pytest.mark.parametrize("command", UNWRITABLE)
def test_a_missing_parent_folder_is_one_line(run_command, tmp_path, command):
    result = run_command(UNWRITABLE[command])
    check_one_error(result, f"the folder {tmp_path / 'new'} does not exist. Create it")
    assert len(result[1]) == 1 and not list(tmp_path.iterdir())


READ_ONLY = {
    **UNWRITABLE,
    "train": COMMANDS["train"],
    "evaluate": "evaluate RUN DATA --out NEW",
    "calibrate": "evaluate RUN DATA --calibrate",
    "report in the run": "report RUN",
    "export": COMMANDS["export"],
    "export in the run": "export RUN",
    "compare": COMMANDS["compare"],
    "adapt": COMMANDS["adapt"],
    "tune": COMMANDS["tune"],
    "demo": COMMANDS["demo"],
}


@pytest.mark.parametrize("command", READ_ONLY)
def test_a_read_only_folder_is_one_line(
    run_command, shared, tmp_path, monkeypatch, request, command
):
    if command == "compare":  # it looks for its backbone's weights first
        request.getfixturevalue("real_weights")
    (tmp_path / "new").mkdir()
    if command in ("export", "train", "evaluate", "compare", "adapt", "tune", "demo"):
        (tmp_path / "new").rmdir()
    access = os.access
    monkeypatch.setattr(  # root may write into every folder
        os, "access", lambda path, mode: not mode & os.W_OK and access(path, mode)
    )
    before = sorted(shared.rglob("*"))
    check_one_error(run_command(READ_ONLY[command]), "is read-only")
    assert sorted(shared.rglob("*")) == before


@pytest.mark.parametrize("command", ["backbones --json", "schedule lp_ft", "--help"])
def test_a_broken_pipe_ends_quietly(command):
    code = f"import sys; sys.argv[1:] = {command.split()}\n"
    code += "from keras_transfer.cli.main import main\nmain()"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == -signal.SIGPIPE
    assert done.stderr == b""


def test_errors_of_files_that_no_check_foresaw_are_one_line(run_command, monkeypatch):
    import keras_transfer.data as data

    def fail(*args, **options):
        raise OSError(30, "Read-only file system", "/mnt/cache")

    monkeypatch.setattr(data, "check_data", fail)
    check_one_error(run_command("check DATA"), "/mnt/cache: Read-only file system")


# -- files --------------------------------------------------------------------------------------------


def test_predictions_can_go_to_stdout_and_to_devices(run_command, tmp_path):
    assert run_command("predict RUN IMAGE --out /dev/null")[0] == 0
    assert Path("/dev/null").is_char_device()


def test_a_fifo_receives_the_bytes(tmp_path):
    fifo, received = tmp_path / "fifo", []
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: received.append(fifo.read_bytes()))
    reader.start()
    check_output(fifo)
    write_text(fifo, "text")
    reader.join(10)
    assert received == [b"text"] and fifo.is_fifo()
    assert [file.name for file in tmp_path.iterdir()] == ["fifo"]


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_stdout_receives_the_bytes_after_what_was_printed(tmp_path, name):
    (tmp_path / "link").symlink_to("/dev/stdout")
    code = (
        "from keras_transfer.utils.files import check_output, write_text\n"
        f"print('first'); check_output({name!r}); write_text({name!r}, 'second\\n'); print('third')"
    )
    result = tmp_path / "result"
    with result.open("w") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, cwd=tmp_path, check=True)
    assert result.read_text() == "first\nsecond\nthird\n"
    assert (tmp_path / "link").is_symlink()


def test_links_and_modes_stay(tmp_path):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "target.csv", tmp_path / "link.csv"
    target.write_text("before")
    target.chmod(0o640)
    link.symlink_to("folder/target.csv")
    write_text(link, "after")
    assert link.is_symlink() and target.read_text() == "after"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640

    dangling = tmp_path / "dangling.csv"
    dangling.symlink_to("folder/new.csv")
    write_text(dangling, "new")
    assert dangling.is_symlink() and (tmp_path / "folder" / "new.csv").read_text() == "new"
    with raises("dangling exists"), new_folder(tmp_path / "dangling"):
        (tmp_path / "dangling").symlink_to("nowhere")


def test_a_run_in_a_linked_folder_leaves_link_and_mode(tmp_path):
    from keras_transfer.runs import Run

    (tmp_path / "disk").mkdir(mode=0o750)
    (tmp_path / "run").symlink_to("disk")
    run = Run.create(tmp_path / "run", {"a": 1}, [], {})
    assert (tmp_path / "run").is_symlink() and run.config == {"a": 1}
    assert stat.S_IMODE((tmp_path / "disk").stat().st_mode) == 0o750


def test_a_full_device_is_an_input_error():
    with raises("Cannot write /dev/full: No space left on device. Free some disk space"):
        write_text("/dev/full", "x" * 100)


def test_a_failed_write_leaves_nothing(tmp_path):
    def write(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    (tmp_path / "file").write_text("before")
    with raises("file: No space left on device"):
        write_file(tmp_path / "file", write)
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [("file", "before")]
