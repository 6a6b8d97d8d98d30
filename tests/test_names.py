"""Public names: those of DESIGN.md, the rooms, and the names of 0.1 with a warning."""

import inspect
import subprocess
import sys
import warnings

import pytest

import keras_transfer as kt

MOVED = kt._MOVED


def test_names_are_loaded_on_first_use():
    code = (
        "import sys, keras_transfer as kt; dir(kt); kt.InputError, kt.Phase, kt.data\n"
        "print([n for n in ('keras', 'tensorflow', 'sklearn', 'matplotlib') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_no_warning_for_current_names():
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        assert all(getattr(kt, name) is not None for name in kt.__all__)
    assert {*kt.__all__} <= {*dir(kt)} and not {*MOVED} & {*kt.__all__}


@pytest.mark.parametrize("name", MOVED)
def test_old_names_work_with_a_warning_that_gives_the_new_one(name):
    for _ in range(2):  # the second time, too, when the module of the name has been imported
        with pytest.warns(DeprecationWarning, match=f"keras_transfer.{name} is now {MOVED[name]};"):
            found = getattr(kt, name)
        assert not inspect.ismodule(found) and found.__name__ == name


def test_unknown_names_are_errors():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        kt.nothing  # noqa: B018


@pytest.mark.parametrize(
    "room", [room for room in kt._ROOMS if hasattr(getattr(kt, room), "__all__")]
)
def test_rooms_list_their_names(room):
    module = getattr(kt, room)
    for _ in range(2):
        for name in module.__all__:
            value = getattr(module, name)
            assert not inspect.ismodule(value) or name == "losses", f"kt.{room}.{name} is a module"
