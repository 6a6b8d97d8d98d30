"""The store: found again, bounded, and never wrong."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from keras_transfer.errors import InputError
from keras_transfer.features import store as store_module
from keras_transfer.features.store import DIGEST, Store, Writer, read_shard
from keras_transfer.utils.console import format_bytes


def digests(*numbers):
    return [n.to_bytes(DIGEST, "little") for n in numbers]


def table_of(store, name="t", **about):
    table = store.table({"name": name}, about)
    table.refresh()
    return table


def rows(n, width=5, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width)).astype("float32")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "uint8"])
def test_rows_come_back(tmp_path, dtype):
    store = Store(tmp_path)
    table = table_of(store)
    first, second = (np.abs(rows(n, 6, n) * 9).astype(dtype).reshape(n, 2, 3) for n in (4, 3))
    table.add(digests(*range(4)), first)
    table.add(digests(*range(4, 7)), second)
    again = table_of(store)
    assert again.missing(digests(5, 9, 1, 9, 8)) == [1, 4]  # each image once
    got = again.gather(again.locate(digests(6, 0, 5, 0)))
    expected = np.stack([second[2], first[0], second[1], first[0]])
    assert got.dtype == expected.dtype and got.shape == (4, 2, 3)
    np.testing.assert_array_equal(got.view("uint8"), expected.view("uint8"))


def test_another_identity_is_another_table(tmp_path):
    store = Store(tmp_path)
    table_of(store, "a").add(digests(1), rows(1))
    assert table_of(store, "b").missing(digests(1)) == [0]
    assert table_of(store, "a").missing(digests(1)) == []


def test_a_writer_keeps_no_more_than_a_shard_in_memory(tmp_path):
    table = table_of(Store(tmp_path))
    writer = Writer(table, shard_bytes=1000)
    for i in range(0, 200, 10):
        writer.add(digests(*range(i, i + 10)), rows(10, seed=i))
        assert sum(part.nbytes for part in writer._rows) < 1000
    writer.flush()
    assert len(table.shards) == 4  # of 50 rows, 1000 bytes
    assert all(isinstance(shard, np.memmap) for shard in table.shards)
    np.testing.assert_array_equal(table.gather(table.locate(digests(57)))[0], rows(10, seed=50)[7])


def shard_file(folder):
    (file,) = folder.glob("*/*.shard")
    return file


def damage(file, position, keep=None):
    contents = bytearray(file.read_bytes())
    if keep is not None:
        del contents[keep:]
    else:
        contents[position] ^= 0x10
    file.write_bytes(contents)


def test_every_flipped_bit_is_noticed(tmp_path):
    """In the magic, lengths, header, digests, rows; only the padding means nothing."""
    table = table_of(Store(tmp_path))
    table.add(digests(1, 2, 3), rows(3))
    file = shard_file(tmp_path)
    whole = file.read_bytes()
    data = rows(3).tobytes()
    start = whole.index(data)
    names = whole.index(digests(1)[0])
    meaningful = [*range(names + 3 * DIGEST), *range(start, len(whole))]
    for position in meaningful:
        damage(file, position)
        fresh = table_of(Store(tmp_path))
        assert fresh.missing(digests(1, 2, 3)) == [0, 1, 2] and len(fresh.damaged) == 1, position
        assert not file.exists()  # its rows are computed again
        file.write_bytes(whole)
    assert table_of(Store(tmp_path)).missing(digests(1, 2, 3)) == []


@pytest.mark.parametrize("keep", [0, 4, 12, 40, 150, -1])
def test_a_truncated_shard_is_noticed(tmp_path, keep):
    table_of(Store(tmp_path)).add(digests(1, 2, 3), rows(3))
    damage(shard_file(tmp_path), 0, keep=keep)
    fresh = table_of(Store(tmp_path))
    assert fresh.missing(digests(1, 2, 3)) == [0, 1, 2] and len(fresh.damaged) == 1


def test_a_full_disk_goes_on_in_memory(tmp_path, monkeypatch):
    table = table_of(Store(tmp_path))
    writer = Writer(table, shard_bytes=100)
    writer.add(digests(1, 2, 3, 4, 5), rows(5))

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module.os, "fsync", full)
    writer.add(digests(6, 7, 8, 9, 10), rows(5, seed=1))
    assert writer.full.errno == errno.ENOSPC
    np.testing.assert_array_equal(
        table.gather(table.locate(digests(2, 7))), [rows(5)[1], rows(5, seed=1)[1]]
    )
    fresh = table_of(Store(tmp_path))
    assert fresh.missing(digests(2, 7)) == [1]  # the first shard is on disk, the second is not
    assert not list(tmp_path.glob("*/.*"))  # nor half of it


FILL = """
import sys
import numpy as np
from pathlib import Path
from keras_transfer.features.store import DIGEST, Store, Writer

table = Store(Path(sys.argv[1])).table({"name": "t"}, {})
table.refresh()
writer = Writer(table, shard_bytes=4000)
print("ready", flush=True)
sys.stdin.readline()
for i in range(int(sys.argv[2])):
    row = np.full((1, 100), i, "float32")
    writer.add([i.to_bytes(DIGEST, "little")], row)
writer.flush()
"""


def fill(folder, count):
    process = subprocess.Popen(
        [sys.executable, "-c", FILL, str(folder), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def check_filled(folder, numbers):
    table = table_of(Store(folder))
    assert table.damaged == []
    np.testing.assert_array_equal(
        table.gather(table.locate(digests(*numbers)))[:, 0], np.array(numbers, "float32")
    )
    return table


def test_two_processes_fill_the_same_table(tmp_path):
    both = [fill(tmp_path, 500) for _ in range(2)]
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.wait() for process in both] == [0, 0]
    table = check_filled(tmp_path, list(range(500)))
    assert len(table.shards) == 100  # each wrote its own


def test_killed_while_writing(tmp_path):
    """Whatever the moment: what is there is right, and what was being written is cleared away."""
    for wait in (0.0, 0.01, 0.02, 0.04, 0.08):
        process = fill(tmp_path, 1_000_000)
        process.stdin.write("\n")
        process.stdin.flush()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        table = table_of(Store(tmp_path))
        known = sorted(int.from_bytes(d, "little") for d in table.where)
        assert known == list(range(len(known)))
        if known:
            check_filled(tmp_path, known)
        assert not list(tmp_path.glob("*/.*"))
    assert known


def test_a_read_only_cache_is_read(tmp_path, monkeypatch):
    table = table_of(Store(tmp_path))
    table.add(digests(1), rows(1))
    (table.folder / ".999999999.x.shard").write_bytes(b"left by a process that has ended")
    (table.folder / "z.shard").write_bytes(b"damaged")

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    again = table_of(Store(tmp_path))
    assert again.missing(digests(1)) == [] and len(again.damaged) == 1


def test_a_temporary_file_of_a_living_process_stays(tmp_path):
    table = table_of(Store(tmp_path))
    table.add(digests(1), rows(1))
    alive = table.folder / f".{os.getpid()}.x.shard"
    alive.write_bytes(b"in work")
    table_of(Store(tmp_path))
    assert alive.exists()


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    store = Store(tmp_path)
    for age, name in enumerate("abc"):
        table = table_of(store, name, backbone=name)
        table.add(digests(1), rows(1, 2500))
        os.utime(table.folder / "table.json", (1e9 - age, 1e9 - age))
    table_of(store, "c")  # used again
    assert [t.about["backbone"] for t in store.list()] == ["c", "a", "b"]
    assert all(t.bytes > 10_000 for t in store.list())
    assert store.trim(limit=25_000) > 10_000
    assert [t.about["backbone"] for t in store.list()] == ["c", "a"]
    kept = table_of(store, "a")
    store.trim(limit=0, keep=[kept.key])
    assert [t.about["backbone"] for t in store.list()] == ["a"]
    store.trim(limit=0)
    assert store.list() == [] and Store(tmp_path / "never").list() == []


def test_a_table_removed_in_use_is_still_right(tmp_path):
    """Another process may trim: rows that are mapped stay, and new shards make the folder anew."""
    store = Store(tmp_path)
    table = table_of(store)
    table.add(digests(1), rows(1))
    store.trim(limit=0)
    np.testing.assert_array_equal(table.gather(table.locate(digests(1))), rows(1))
    table.add(digests(2), rows(1, seed=2))
    fresh = table_of(store)
    assert fresh.missing(digests(1, 2)) == [0]


def test_limits(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_TRANSFER_CACHE_GB", "0.5")
    assert Store(tmp_path).limit == 1 << 29 and Store(tmp_path).free() <= 1 << 29
    for text in ("much", "inf", "nan", "-1"):
        monkeypatch.setenv("KERAS_TRANSFER_CACHE_GB", text)
        with pytest.raises(InputError, match=f"KERAS_TRANSFER_CACHE_GB is '{text}'"):
            Store(tmp_path)
    assert [format_bytes(n) for n in (0, 1023, 5 << 20, 3 << 29)] == [
        "0 B",
        "1.02e+03 B",
        "5 MiB",
        "1.5 GiB",
    ]


def test_a_shard_says_what_it_holds(tmp_path):
    table = table_of(Store(tmp_path), backbone="b")
    table.add(digests(7), rows(1))
    names, values = read_shard(shard_file(tmp_path))
    assert names == digests(7)
    np.testing.assert_array_equal(values, rows(1))
    assert json.loads((table.folder / "table.json").read_text()) == {"backbone": "b"}
