"""What was concluded from features, kept beside them: found again without a look at the features."""

import hashlib
import json
from collections.abc import Callable

import numpy as np

from keras_transfer.features.extraction import features_identity
from keras_transfer.features.prefix import Prefix
from keras_transfer.features.store import DIGEST, Store, Writer

_ROW = bytes(DIGEST)  # a table of one row


def kept(store: Store, what: str, identity: dict, about: dict, compute: Callable[[], dict]) -> dict:
    """What `compute` gave when it was first asked; where nothing is kept, or damaged, it is asked.

    Args:
        what: kind of conclusion, with the version of its formulas.
        identity: plain data; all that the answer depends on.
        about: for people, see `Store.table`.
        compute: gives plain data, floats among it come back to the last bit.
    """
    table = store.table({"what": what, **identity}, {**about, "dtype": "uint8", "shape": []})
    table.refresh()
    if table.missing([_ROW]):
        text = json.dumps(compute()).encode()
        writer = Writer(table)
        writer.add([_ROW], np.frombuffer(text, "uint8")[None])
        writer.flush()
        store.trim(keep=[table.key])
    (row,) = table.gather(table.locate([_ROW]))
    return json.loads(row.tobytes())


def concluded(
    prefix: Prefix,
    store: Store,
    what: str,
    compute: Callable[[], dict],
    *,
    of: str,
    engine: str = "keras",
    view: str = "plain",
    **identity,
) -> dict:
    """`kept`, of what follows from a prefix's features.

    Args:
        of: what was looked at, for people.
        engine, view: by which, and of what, the features are.
        identity: all that the answer depends on beside the prefix and the engine.
    """
    identity = {**features_identity(prefix), "engine": engine, **identity}
    about = {
        "backbone": f"{prefix.name}: {of}",
        "image_size": prefix.image_size,
        "engine": engine,
        "view": view,
    }
    return kept(store, what, identity, about, compute)


def digest_of(*parts: list[bytes] | np.ndarray) -> str:
    """A digest of lists of digests and of arrays, in their order."""
    digest = hashlib.blake2b(digest_size=DIGEST)
    for part in parts:
        if isinstance(part, np.ndarray):
            head, data = f"{part.dtype} {part.shape}", np.ascontiguousarray(part).tobytes()
        else:
            head, data = f"{len(part)} digests", b"".join(part)
        digest.update(head.encode() + b"\0" + data)
    return digest.hexdigest()
