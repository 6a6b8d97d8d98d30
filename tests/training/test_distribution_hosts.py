"""Two hosts, each a network namespace, and the link between them, which is cut."""

import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import write_image
from test_distribution_processes import command, environment, trained

from keras_transfer.errors import WorkerLost
from keras_transfer.training.distributed.faults import HEARTBEAT_SECONDS

ADDRESSES = ("10.213.77.1", "10.213.77.2")
PORT = 12399


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True)


@pytest.fixture
def hosts():
    """Names of two namespaces that are joined by a link; skipped where that is not permitted."""
    names = [f"kt{os.getpid()}{side}" for side in "ab"]
    own_files = [Path("/etc/netns") / name for name in names]
    links = [f"kt{os.getpid() % 10000}{side}" for side in "ab"]
    try:
        made = [ip("netns", "add", name) for name in names]
        made.append(ip("link", "add", links[0], "type", "veth", "peer", "name", links[1]))
        for name, link, address in zip(names, links, ADDRESSES):
            made.append(ip("link", "set", link, "netns", name))
            made.append(ip("-n", name, "addr", "add", f"{address}/24", "dev", link))
            made.append(ip("-n", name, "link", "set", link, "up"))
            made.append(ip("-n", name, "link", "set", "lo", "up"))
        for folder, address in zip(own_files, ADDRESSES):
            # JAX's collectives on processors tell the others the address that the host's name has.
            folder.mkdir(parents=True)
            text = f"127.0.0.1 localhost\n{address} {socket.gethostname()}\n"
            (folder / "hosts").write_text(
                text
            )  # `ip netns exec` puts it in the place of /etc/hosts
        if any(step.returncode for step in made):
            pytest.skip("network namespaces cannot be made here: " + made[0].stderr.strip())
        yield list(zip(names, links))
    except FileNotFoundError:
        pytest.skip("there is no ip command")
    except PermissionError as error:
        pytest.skip(f"network namespaces cannot be made here: {error}")
    finally:
        for name, folder in zip(names, own_files):
            ip("netns", "del", name)
            shutil.rmtree(folder, ignore_errors=True)


class Host:
    """A worker in a namespace; its lines are read as they come."""

    def __init__(self, name, index, line, kind):
        env = environment(kind)
        if kind == "jax":
            env["KERAS_DISTRIBUTION_JOB_ADDRESSES"] = f"{ADDRESSES[0]}:{PORT}"
            env["KERAS_DISTRIBUTION_NUM_PROCESSES"] = "2"
            env["KERAS_DISTRIBUTION_PROCESS_ID"] = str(index)
        else:
            cluster = {"worker": [f"{address}:{PORT}" for address in ADDRESSES]}
            task = {"type": "worker", "index": index}
            env["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", name, *line],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said, self.lines = [], queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.said.append(line)
            self.lines.put(line)

    def until(self, words, seconds=600):
        end = time.monotonic() + seconds
        while time.monotonic() < end and (self.process.poll() is None or not self.lines.empty()):
            try:
                if words in self.lines.get(timeout=1):
                    return
            except queue.Empty:
                continue
        raise AssertionError(f"{words!r} was never said:\n" + "".join(self.said)[-4000:])


@pytest.mark.large
@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
@pytest.mark.parametrize("kind", ["multi_worker", "jax"])
def test_a_link_that_is_cut_ends_both(hosts, tmp_path, kind, cache):
    """Without a byte from the other: heartbeats are missed. Then one process goes on."""
    for name, colour in {"red": (200, 40, 40), "green": (40, 200, 40)}.items():
        for i in range(9):
            write_image(tmp_path / "images" / name / f"{i}.png", colour, seed=i)
    out = tmp_path / "out"
    line = command(tmp_path / "images", out, kind, "long", "--slow", "0.2")
    workers = [Host(name, i, line, kind) for i, (name, _) in enumerate(hosts)]
    try:
        workers[0].until("epoch 3 is kept")
        name, link = hosts[0]
        assert ip("-n", name, "link", "set", link, "down").returncode == 0
        cut = time.monotonic()
        codes = [worker.process.wait(timeout=4 * HEARTBEAT_SECONDS) for worker in workers]
        took = time.monotonic() - cut
        assert took < 2 * HEARTBEAT_SECONDS
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.wait()
            worker.reader.join(timeout=10)
    assert codes == [WorkerLost.exit_code, WorkerLost.exit_code], [
        worker.said[-10:] for worker in workers
    ]
    print(f"{kind}: both ended {took:.1f} s after the link was cut")
    again = trained(
        tmp_path / "images",
        out,
        "none",
        1,
        "long",
        "--resume",
        backend=environment(kind)["KERAS_BACKEND"],
    )
    assert "resuming after epoch" in again
