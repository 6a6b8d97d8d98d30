"""The index: what was examined is remembered, what changed is examined again, damage is noticed."""

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_image
from PIL import Image

from keras_transfer.data import check_examples, check_files, files
from keras_transfer.data.readers import digest_files
from keras_transfer.modalities.image import modality
from keras_transfer.utils.files import cache_folder

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def read(monkeypatch):
    """The paths that are read, as they are."""
    paths, read_bytes = [], Path.read_bytes

    def counted(path):
        paths.append(path.name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    return paths


@pytest.fixture
def images(tmp_path) -> list[str]:
    """Twelve files, two of them bad, old enough to be remembered."""
    folder = tmp_path / "images"
    for i in range(10):
        write_image(folder / f"{i}.png", (9 * i, 90, 90), seed=i)
    (folder / "bad.jpg").write_bytes(b"no image")
    (folder / "empty.jpg").write_bytes(b"")
    time.sleep(0.15)
    return sorted(map(str, folder.iterdir()))


def found(checked):
    return (
        checked.faults,
        checked.digests.tolist(),
        checked.columns["width"].tolist(),
        checked.columns["mode"].tolist(),
    )


def test_a_second_check_reads_nothing(images, read):
    first = check_files(images)
    assert len(read) == 12
    second = check_files(images)
    assert len(read) == 12 and found(second) == found(first)
    good, _ = check_examples(images)
    assert good.digests == digest_files(good.names) and good.take([3]).digests == [good.digests[3]]
    assert len(read) == 12


def test_a_changed_file_is_read_again(images, read):
    check_files(images)
    path = Path(images[3])
    before, other = path.stat(), Path(images[4])
    contents = path.read_bytes()
    read.clear()

    # Same name, same size, same time: only the file system's own time gives it away.
    path.write_bytes(contents[:-20] + bytes(20))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert check_files(images).faults.keys() == {3, 10, 11}
    assert read == [path.name]
    # Another file in its place.
    read.clear()
    other.replace(path)
    checked = check_files(images)
    assert checked.faults.keys() == {4, 10, 11} and path.name in read


def test_digests_are_those_of_the_files_when_they_are_asked_for(images, read):
    """Features are kept under them: a file changed after the check must not pass for the old one."""
    good, _ = check_examples(images)
    part, before = good.take([4, 2, 7]), digest_files(good.names)
    write_image(Path(good.names[2]), (200, 0, 0))
    assert part.digests == digest_files(part.names)
    assert [d in before for d in part.digests] == [True, False, True]
    assert len(read) == 12  # the changed one is read for its digest only


def test_what_changes_while_it_is_read_is_not_remembered(images, read, monkeypatch):
    look = files.examine_file

    def slow(path, modality):
        facts = look(path, modality)
        if path == images[0]:
            os.utime(path)
        return facts

    monkeypatch.setattr(files, "examine_file", slow)
    check_files(images)
    read.clear()
    check_files(images)
    assert read == [Path(images[0]).name]


def test_a_file_of_this_moment_is_not_remembered(tmp_path, read, monkeypatch):
    write_image(tmp_path / "new.png", (1, 2, 3))
    path = str(tmp_path / "new.png")
    written = Path(path).stat().st_ctime_ns
    monkeypatch.setattr(files.time, "time_ns", lambda: written + 50_000_000)
    check_files([path])
    check_files([path])
    assert len(read) == 2
    monkeypatch.setattr(files.time, "time_ns", lambda: written + 2_500_000_000)
    check_files([path])
    check_files([path])
    assert len(read) == 3


def test_other_rules_ask_again(images, read, monkeypatch):
    check_files(images)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert len(check_files(images).faults) == 12 and len(read) == 24
    monkeypatch.setattr(modality, "RULES", modality.RULES + 1)
    check_files(images)
    assert len(read) == 36


@pytest.mark.parametrize("damage", ["garbage", "cut", "flipped", "other table", "empty"])
def test_a_damaged_index_is_noticed_and_made_anew(images, read, cache, damage, capsys):
    first = check_files(images)
    (file,) = cache.iterdir()
    data = file.read_bytes()
    if damage == "garbage":
        file.write_bytes(b"garbage" * 1000)
    elif damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "flipped":
        # One bit of a digest: SQLite has no checksums, the rows have.
        digest = first.digests[5].tobytes()
        at = data.index(digest)
        file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    else:
        with sqlite3.connect(file) as connection:
            connection.execute("UPDATE images SET fault = 'x', mode = 3 WHERE fault IS NULL")
        connection.close()
    read.clear()
    assert found(check_files(images)) == found(first)
    assert len(read) == {"flipped": 1, "other table": 10}.get(damage, 12)
    noticed = "was damaged" in capsys.readouterr().err
    assert noticed == (damage in ("garbage", "cut"))
    read.clear()
    check_files(images)
    assert read == []


def test_without_a_place_for_the_index(images, tmp_path, monkeypatch, read, capsys):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("KERAS_TRANSFER_CACHE", str(tmp_path / "file" / "cache"))
    assert check_files(images).faults.keys() == {10, 11}
    assert check_files(images).faults.keys() == {10, 11}
    assert len(read) == 24 and "not cached" in capsys.readouterr().err


def test_an_index_that_may_only_be_read(images, cache, read, capsys, monkeypatch):
    check_files(images[:6])
    connect = sqlite3.connect

    def read_only(file, **options):
        if "uri" in options:  # of another library, such as coverage
            return connect(file, **options)
        return connect(f"{Path(file).as_uri()}?mode=ro", uri=True, **options)

    monkeypatch.setattr(sqlite3, "connect", read_only)
    assert check_files(images).faults.keys() == {10, 11}
    assert len(read) == 12 and "readonly" in capsys.readouterr().err


def test_two_processes_at_once(images, cache):
    code = (
        "import sys; from keras_transfer.data import check_files, files\n"
        "from keras_transfer.modalities.image import modality\n"
        "files._TRANSACTION_SIZE = 1\n"
        "for _ in range(5):\n"
        "    c = check_files(sys.argv[1:]); assert sorted(c.faults) == [10, 11]\n"
        "    modality.RULES += 1  # every round writes\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, *images], stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0 and not errors, errors
    with sqlite3.connect(next(cache.glob("*.sqlite"))) as connection:
        assert connection.execute("SELECT count(*) FROM images").fetchone() == (12,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_what_was_examined_before_an_interruption_is_kept(images, read, monkeypatch):
    look = files.examine_file

    def interrupted(path, modality):
        if path == images[6]:
            raise KeyboardInterrupt
        return look(path, modality)

    monkeypatch.setattr(files, "examine_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check_files(images)
    monkeypatch.setattr(files, "examine_file", look)
    read.clear()
    check_files(images)
    assert len(read) == 6


def test_columns_are_compact():
    import tracemalloc

    names = [f"{i}.png" for i in range(50_000)]
    tracemalloc.start()
    checked = files.Checked(names, modality.MODALITY)
    digests = [os.urandom(16) for _ in range(100)]
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    for row in range(50_000):
        facts = modality.MODALITY.facts(300, 200, "RGB", "JPEG", 6, digests[row % 100])
        checked.set(row, (9, 9, 9, 9), facts)
    assert tracemalloc.get_traced_memory()[0] - before < 10_000  # nothing for a file
    tracemalloc.stop()
    assert sum(column.nbytes for column in vars(checked).values() if hasattr(column, "nbytes")) <= (
        50_000 * 73
    )


def test_the_cache_folder_may_be_below_home(monkeypatch):
    monkeypatch.setenv("KERAS_TRANSFER_CACHE", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"
