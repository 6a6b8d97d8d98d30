"""Standard output and standard error of a command, which may be closed, full, or read no longer."""

import codecs
import contextlib
import errno
import io
import os
import signal
import sys

from keras_transfer.errors import InputError
from keras_transfer.utils.console import printable
from keras_transfer.utils.files import encode_text

_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}


def require_streams() -> None:
    """End the command with exit code 2 if stdout or stderr is closed, before it does any work."""
    if sys.stderr is None:  # nobody can be told
        sys.exit(InputError.exit_code)
    if sys.stdout is None:
        report_error("standard output is closed. Use `> FILE`, or `> /dev/null` to discard it.")
        sys.exit(InputError.exit_code)


def accept_any_name() -> None:
    """Let stdout print any name, so that scripts that read a path get its own bytes.

    Characters that the encoding lacks are escaped; in a terminal, bytes that are not text are too.
    """
    codecs.register_error("own bytes", _own_bytes)
    errors = "backslashreplace" if sys.stdout.isatty() else "own bytes"
    if isinstance(sys.stdout, io.TextIOWrapper):  # not under a test or in a notebook
        sys.stdout.reconfigure(errors=errors)


def _own_bytes(error):
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    data = (
        encode_text(c) if "\udc80" <= c <= "\udcff" else c.encode("ascii", "backslashreplace")
        for c in found
    )
    return b"".join(data), error.end


def print_document(text: str) -> None:
    """Print a document on stdout with the bytes that a file of it has, unless a terminal reads it."""
    binary = getattr(sys.stdout, "buffer", None)
    if binary is None or sys.stdout.isatty():  # control characters could change the terminal
        text = "\n".join(printable(line) for line in text.split("\n"))
        print(text, end="")
        return
    sys.stdout.flush()
    binary.write(encode_text(text))
    binary.flush()


def report_error(text: str) -> None:
    """Print one line of an error on stderr, if that is possible."""
    with contextlib.suppress(OSError):
        print("error: " + printable(" ".join(text.split())), file=sys.stderr, flush=True)


def report_os_error(error: OSError) -> int | None:
    """Report that a stream or a file cannot be used; return the exit code.

    A broken pipe ends the process. Returns None for other errors, which are internal.
    """
    if isinstance(error, BrokenPipeError):
        _end_by_broken_pipe()
    if error.filename is not None:
        report_error(f"{error.filename}: {error.strerror}. Check the path and its permissions.")
    elif error.errno in _UNWRITABLE:  # a stream: errors of files are explained where they occur
        _discard_unwritable()
        report_error(f"Cannot write the output: {error.strerror}.")
    else:
        return None
    return InputError.exit_code


def flush_streams(code: int) -> int:
    """Write the rest of the buffers; return the exit code, 2 if that fails."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            _end_by_broken_pipe()
        except OSError as error:
            _discard_unwritable()
            report_error(f"Cannot write the output: {error.strerror}.")
            code = InputError.exit_code
    return code


def _discard_unwritable():
    """Send what cannot be written to /dev/null, or Python would try again at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def _end_by_broken_pipe():
    """End as Unix tools do when their reader is gone (`| head -1`): at once, without a message."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    os._exit(1)
