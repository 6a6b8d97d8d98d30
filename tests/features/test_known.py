"""What a diagnosis found is said where accuracy is measured on the same examples."""

import pytest
from conftest import tiny_backbone, write_image

import keras_transfer as kt
from keras_transfer.features.known import caution, remember_diagnosis
from keras_transfer.models.builders import build_model, head_for


@pytest.fixture
def known(data, cache):
    """`data`, of which rows of val and train are near-duplicates and many labels are wrong."""
    train = len(data.examples["train"])
    remember_diagnosis(
        data,
        "tiny",
        {"": {"value": 0.14, "low": 0.1, "high": 0.2}},
        [[0, train, train + 1], [1, 2]],
    )
    return data


def test_one_line_says_why_accuracy_is_worth_less(known):
    line = caution(known)
    val = len(known.examples["val"])
    assert "\n" not in line and "worth less" in line
    assert "at most about 14 % of the labels are wrong" in line
    assert f"2 of {val} examples of val are near-duplicates" in line


def test_a_table_is_named_so_that_the_command_can_be_run(known):
    assert f"check {known.root} --deep" in caution(known)
    known.opened = f"{known.root}/two_heads.csv"
    assert f"check {known.root}/two_heads.csv --deep" in caution(known)


def test_another_split_leaks_otherwise(known, colours):
    """The result is of the examples; which of them leak depends on how they are split."""
    names = [path for path, _, _ in known.split_table()]
    table = colours.parent / "split.csv"
    first = names[len(known.examples["train"])]
    rows = [(n, s if n != first else "train") for n, _, s in known.split_table()]
    table.write_text("path,split\n" + "".join(f"{n},{s}\n" for n, s in rows))
    other = kt.data.open_data(colours, split_file=table, progress=False)
    assert f"1 of {len(other.examples['val'])} examples of val" in caution(other)


def test_changed_data_and_few_problems_say_nothing(known, colours):
    write_image(colours / "red" / "new.png", (200, 40, 40), seed=77)
    assert caution(kt.data.open_data(colours, progress=False)) is None
    remember_diagnosis(known, "tiny", {"": {"value": 0.09, "low": 0.07, "high": 0.1}}, [[1, 2]])
    assert caution(known) is None


def test_train_says_it_once(known, tmp_path, capsys):
    model = build_model(tiny_backbone(), head_for(known))
    kt.Trainer(model, "from_scratch", overrides={"epochs": 1}).fit(known, tmp_path / "run")
    assert capsys.readouterr().err.count("measured accuracy is worth less") == 1


def test_advice_notes_it(known, real_weights):
    advice = kt.advise(known, backbones=["mobilenet_0.25"], image_size=32, probes=False)
    assert any(note.startswith("measured accuracy is worth less") for note in advice.notes)
