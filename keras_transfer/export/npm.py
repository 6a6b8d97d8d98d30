"""Files of npm packages, downloaded once into the cache folder."""

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from keras_transfer.errors import InputError
from keras_transfer.utils.console import first_line
from keras_transfer.utils.files import cache_folder, new_folder

_MINUTES = 5  # that a download may take


class Package(NamedTuple):
    """Files of an npm package.

    Attributes:
        name, version: as npm knows them.
        files: names of the files in its folder `dist/`.
    """

    name: str
    version: str
    files: tuple[str, ...]

    def require(self, purpose: str) -> None:
        """Raise InputError if the package is not in the cache and npm, which downloads it, is missing.

        Args:
            purpose: what needs it; starts the message, such as `"The page"`.
        """
        if not self._place.exists() and shutil.which("npm") is None:
            raise InputError(
                f"{purpose} needs {self.name} {self.version}, which npm downloads, and npm was not found. "
                "Install Node.js, or export on a machine that has it."
            )

    def folder(self, purpose: str) -> Path:
        """Return a folder with the files, downloaded if it is not in the cache.

        Raises:
            InputError: if they cannot be downloaded.
        """
        if not self._place.exists():
            self.require(purpose)
            try:
                self._download(purpose)
            except InputError:
                if not self._place.exists():  # else another process was faster
                    raise
        return self._place

    @property
    def _place(self):
        return cache_folder() / f"{self.name.lstrip('@').replace('/', '-')}-{self.version}"

    def _download(self, purpose):
        with tempfile.TemporaryDirectory() as scratch, new_folder(self._place) as folder:
            command = [
                shutil.which("npm") or "npm",
                "pack",
                f"{self.name}@{self.version}",
                "--silent",
            ]
            try:
                subprocess.run(
                    command,
                    cwd=scratch,
                    check=True,
                    capture_output=True,
                    text=True,
                    timeout=60 * _MINUTES,
                )
            except (OSError, subprocess.SubprocessError) as error:
                told = (getattr(error, "stderr", None) or "").strip()
                reason = told.splitlines()[-1] if told else first_line(error)
                raise InputError(
                    f"npm cannot download {self.name} {self.version}, which {purpose[0].lower()}{purpose[1:]} "
                    f"needs: {reason}. Check the network, or copy the folder {self._place} from another "
                    "machine."
                ) from error
            (archive,) = Path(scratch).glob("*.tgz")
            with tarfile.open(archive) as files:
                for name in self.files:
                    member = files.extractfile(f"package/dist/{name}")
                    assert member is not None, "it is a file"
                    (folder / name).write_bytes(member.read())


TENSORFLOW_JS = (
    Package("@tensorflow/tfjs", "4.22.0", ("tf.min.js",)),
    Package(
        "@tensorflow/tfjs-backend-wasm",
        "4.22.0",
        ("tf-backend-wasm.min.js", "tfjs-backend-wasm.wasm", "tfjs-backend-wasm-simd.wasm"),
    ),
)
