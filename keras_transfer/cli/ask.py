"""The command `ask`: images to a server of TF Serving, its answers out."""

import json
import sys
from typing import Annotated

import typer

from keras_transfer.cli.options import Images
from keras_transfer.errors import InputError


def ask(
    server: Annotated[
        str, typer.Argument(metavar="SERVER", help="http://HOST:8501 or grpc://HOST:8500.")
    ],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Its name on the server.")],
    paths: Images,
    version: Annotated[int | None, typer.Option(help="Of the model. (default: the newest)")] = None,
    features: Annotated[
        bool, typer.Option("--features", help="What the backbone sees, in place of answers.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Images a request.")] = 16,
    timeout: Annotated[float, typer.Option(help="Seconds that one request may take.")] = 30.0,
    retries: Annotated[int, typer.Option(help="Further tries where the server is busy.")] = 3,
):
    """Ask TF Serving for images: one JSON document a line and image."""
    from keras_transfer.data.files import list_images
    from keras_transfer.export.client import Client, ServingError

    files = list_images(paths)
    client = Client(server, model, version, batch_size, timeout, retries)
    refused = 0
    try:
        for found in client.features(files) if features else client.predict(files):
            refused += found["error"] is not None
            print(json.dumps(found))
    except ServingError as error:  # nothing of ours is at fault
        raise InputError(str(error)) from None
    if refused:
        print(f"{refused} of {len(files)} images were not answered", file=sys.stderr)
