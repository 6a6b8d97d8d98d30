"""`keras-transfer doctor`: what a bug report needs to state, and what most often goes wrong."""

from dataclasses import asdict, dataclass

from keras_transfer.utils.console import format_bytes
from keras_transfer.utils.machine import CUDA_LIBRARIES, Machine

OK, WARNING, PROBLEM = "ok", "warning", "problem"
_LEAST_FREE = 2 << 30  # bytes; the features of a few thousand images, and a saved run
_LEAST_PYTHON = (3, 11)


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level: `"ok"`, `"warning"` or `"problem"`; only problems set the exit code.
        subject: the part of the machine or environment that was examined.
        message: its state.
        remedy: what to do; empty if there is nothing to do.
    """

    level: str
    subject: str
    message: str
    remedy: str = ""


def diagnose_machine(machine: Machine) -> list[Finding]:
    """Examine a machine; return the findings in a fixed order."""
    checks = (_system, _imports, _versions, _environment, _gpu, _cache, _weights)
    return [finding for check in checks for finding in check(machine)]


def is_healthy(findings: list[Finding]) -> bool:
    """Return whether there is no problem; warnings do not count."""
    return all(finding.level != PROBLEM for finding in findings)


def as_dict(machine: Machine, findings: list[Finding]) -> dict:
    """Return the document that `--json` prints."""
    rows = [asdict(finding) for finding in findings]
    facts = {name: value for name, value in asdict(machine).items() if name != "requirements"}
    return {"healthy": is_healthy(findings), "findings": rows, "machine": facts}


def as_text(findings: list[Finding]) -> str:
    """Return one line for each finding, and one for each remedy."""
    lines = []
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        lines.append(f"{finding.level:<8} {finding.subject:<{width}}  {finding.message}")
        if finding.remedy:
            lines.append(f"{'':8} {'':{width}}  → {finding.remedy}")
    return "\n".join(lines)


def _system(machine):
    text = f"{machine.python} on {machine.system} {machine.release}".rstrip()
    version = tuple(int(part) for part in machine.python.split(".")[:2])
    if version < _LEAST_PYTHON:
        remedy = "Create an environment with Python 3.11 or newer."
        yield Finding(PROBLEM, "Python", text, remedy)
    elif machine.system == "Windows":
        yield Finding(
            *(WARNING, "Python", f"{text}: TensorFlow has not used GPUs on Windows since 2.10"),
            "Install WSL2 (`wsl --install`) and keras_transfer inside it, or train on the CPU.",
        )
    else:
        yield Finding(OK, "Python", text)


def _imports(machine):
    for name in ("tensorflow", "keras"):
        if name not in machine.packages:
            yield Finding(PROBLEM, name, "not installed", f"pip install {name}")
    if machine.import_error:
        yield Finding(
            *(PROBLEM, "import", machine.import_error),
            "Reinstall TensorFlow and Keras in a fresh environment: pip install keras_transfer",
        )


def _versions(machine):
    """Compare the installed versions with the requirements of each installed package."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    installed = {canonicalize_name(name): version for name, version in machine.packages.items()}
    conflicts = []
    for name, requirements in machine.requirements.items():
        for requirement in map(Requirement, requirements):
            # Extras are optional: their markers are false without an extra.
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            version = installed.get(canonicalize_name(requirement.name))
            if version and not requirement.specifier.contains(version, prereleases=True):
                conflicts.append(
                    Finding(
                        *(PROBLEM, name, f"{machine.packages[name]} needs {requirement}"),
                        f"{requirement.name} {version} is installed. Install a matching pair: "
                        f'pip install --upgrade "{name}" "{requirement.name}{requirement.specifier}"',
                    )
                )
    yield from conflicts
    text = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    yield Finding(OK, "packages", f"{text}; Keras uses {machine.backend}")


def _environment(machine):
    if machine.environment.get("TF_USE_LEGACY_KERAS", "").lower() in ("1", "true"):
        yield Finding(
            *(WARNING, "environment", "TF_USE_LEGACY_KERAS is set: tf.keras is Keras 2"),
            "Use `import keras`, or unset the variable.",
        )


def _gpu(machine):
    if not machine.gpus:
        if machine.visible:
            yield Finding(OK, "GPU", f"TensorFlow sees {len(machine.visible)}")
        else:
            yield Finding(OK, "GPU", "none; training runs on the CPU")
        return
    names = ", ".join(f"{gpu.name} (driver {gpu.driver})" for gpu in machine.gpus)
    if not machine.visible and not machine.import_error:
        yield _unseen(machine, names)
    elif machine.visible:
        growth = "as needed" if machine.memory_growth else "all of it at the start"
        message = f"{names}; TensorFlow sees {len(machine.visible)} and takes memory {growth}"
        yield Finding(OK, "GPU", message)
    if machine.capabilities:
        for gpu in machine.gpus:
            if not _has_kernels(gpu.capability, machine.capabilities):
                yield Finding(
                    *(WARNING, "GPU", f"{gpu.name} has compute capability {_dotted(gpu)}"),
                    f"This TensorFlow has kernels for {', '.join(machine.capabilities)} only: the "
                    "first start compiles them for half an hour or fails. Use a newer TensorFlow.",
                )


def _unseen(machine, names):
    message = f"the driver has {names}, but TensorFlow sees no GPU"
    if machine.environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        value = machine.environment["CUDA_VISIBLE_DEVICES"]
        return Finding(
            PROBLEM, "GPU", f"{message}: CUDA_VISIBLE_DEVICES={value!r} hides it", "Unset it."
        )
    if machine.system == "Windows":
        remedy = "TensorFlow has not used GPUs on Windows since 2.10: install it inside WSL2."
        return Finding(PROBLEM, "GPU", message, remedy)
    if not machine.capabilities:
        remedy = 'pip install "tensorflow[and-cuda]"'
        return Finding(PROBLEM, "GPU", f"{message}: it was built without CUDA", remedy)
    if machine.missing_libraries:
        missing = ", ".join(machine.missing_libraries)
        parts = " ".join(CUDA_LIBRARIES[library] for library in machine.missing_libraries)
        return Finding(
            *(PROBLEM, "GPU", f"{message}: {missing} is missing"),
            f'pip install "tensorflow[and-cuda]" (it contains {parts})',
        )
    remedy = "Update the driver; TensorFlow's log at the first use of the GPU states the reason."
    return Finding(PROBLEM, "GPU", message, remedy)


def _has_kernels(capability, architectures):
    """Return whether kernels run as they are: the same major version and at most the same minor.

    `sm_XY` is machine code. `compute_XY` is code for later GPUs too, but they compile it first.
    """
    majors = [(int(a.split("_")[1][:-1]), int(a[-1])) for a in architectures if a[-1].isdigit()]
    return any(major == capability[0] and minor <= capability[1] for major, minor in majors)


def _dotted(gpu):
    return ".".join(map(str, gpu.capability))


def _cache(machine):
    free = f"{format_bytes(machine.free_bytes)} free in {machine.cache}"
    if machine.free_bytes < _LEAST_FREE:
        remedy = "Free some space (`keras-transfer cache --clear`), or set KERAS_TRANSFER_CACHE."
        yield Finding(WARNING, "cache", free, remedy)
    else:
        yield Finding(OK, "cache", free)


def _weights(machine):
    if machine.weights:
        yield Finding(OK, "weights", f"on this machine: {', '.join(machine.weights)}")
    else:
        yield Finding(OK, "weights", "none on this machine; the first use downloads them")
