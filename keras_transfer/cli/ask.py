"""The command `ask`: send images to TF Serving and print its answers."""

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
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model on the server.")],
    paths: Images,
    version: Annotated[
        int | None, typer.Option(help="Version of the model. (default: the newest)")
    ] = None,
    features: Annotated[
        bool, typer.Option("--features", help="Print the backbone's features, not the scores.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Images per request.")] = 16,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 30.0,
    retries: Annotated[int, typer.Option(help="Retries if the server is busy.")] = 3,
):
    """Send images to TF Serving and print one JSON document per line and image."""
    from keras_transfer.data.evaluation_data import list_images
    from keras_transfer.export.client import Client, ServingError

    files = list_images(paths)
    client = Client(server, model, version, batch_size, timeout, retries)
    errors = 0
    try:
        for answer in client.features(files) if features else client.predict(files):
            errors += answer["error"] is not None
            print(json.dumps(answer))
    except ServingError as error:  # not an internal error
        raise InputError(str(error)) from None
    if errors:
        print(f"{errors} of {len(files)} images were not answered", file=sys.stderr)
