"""What is known of this machine, and the folder where it is kept."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from keras_transfer.utils.files import write_text


def cache_folder() -> Path:
    """Where this package keeps what it can make again: `$KERAS_TRANSFER_CACHE`, or the user's
    cache folder as the operating system has it."""
    chosen = os.environ.get("KERAS_TRANSFER_CACHE")
    if chosen:
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_cache_dir("keras_transfer", appauthor=False))


def cpu_flags() -> set[str]:
    """What the processor can do, in Linux's words; empty elsewhere."""
    try:
        return set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return set()


def free_memory() -> int:
    """Bytes that a program could still take; 4 GiB where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        return 1024 * int(text.split("MemAvailable:")[1].split()[0])
    except (OSError, IndexError, ValueError):  # not Linux
        return 4 << 30


def remembered(subject: str, key: str, measure: Callable[[], object] | None = None):
    """What `measure` said when it was first asked on this kind of machine; plain data.

    Args:
        subject: name of the file it is kept in.
        key: all that the answer depends on.
        measure: None asks for what is known only; None is returned where nothing is.
    """
    cpu = hashlib.sha256(" ".join(sorted(cpu_flags())).encode()).hexdigest()[:12]
    file = cache_folder() / f"{subject}-{cpu}.json"
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if key not in known and measure is not None:
        known[key] = measure()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(known, indent=1))
        except OSError:
            return known[key]  # nowhere to keep it
    return known.get(key)
