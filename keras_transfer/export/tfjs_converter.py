"""Convert a SavedModel to a TensorFlow.js graph model: `python -P tfjs_converter.py SAVED_MODEL FOLDER`.

`tensorflowjs` imports packages for other kinds of model, which are tied to old versions of TensorFlow. A
process of its own imports the converter of SavedModels alone, with empty modules in place of those packages.
"""

import contextlib
import importlib.util
import io
import sys
import types

_OTHER_KINDS = ("tensorflow_decision_forests", "tensorflow_hub")


def main(saved_model: str, folder: str) -> None:
    found = importlib.util.find_spec("tensorflowjs")
    assert found is not None, "the parent process found it"
    place = (found.submodule_search_locations or [""])[0]
    for name, path in (("tensorflowjs", place), ("tensorflowjs.converters", f"{place}/converters")):
        sys.modules[name] = types.ModuleType(name)  # whose __init__ imports every converter
        sys.modules[name].__path__ = [path]
    for name in _OTHER_KINDS:
        sys.modules[name] = types.ModuleType(name)
    from tensorflowjs.converters.tf_saved_model_conversion_v2 import convert_tf_saved_model

    with contextlib.redirect_stdout(io.StringIO()):
        convert_tf_saved_model(saved_model, folder)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:  # of many types; the parent reads the last line
        sys.exit(" ".join(str(error).split()) or type(error).__name__)
