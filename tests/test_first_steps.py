"""`scripts/first_steps.py`: the table's arithmetic, and a run on a few tiny images that a later call continues."""

import first_steps
import numpy as np
import pytest
from PIL import Image
from rows import Rows

SETTING = first_steps.Setting("clothing", "mobilenet_0.25", "all", "32")


def row(variant, seed, accuracy):
    loss = " ".join(["0.5", "2", *["1"] * (len(accuracy) - 2)])
    numbers = {"train_images": "10", "phase_steps": "200", "commit": "abc"}
    numbers |= {"accuracy": " ".join(map(str, accuracy)), "loss": loss}
    return {**SETTING.key(variant, seed), **numbers, "rate": "1e-4 1e-3", "gradient_norm": "1 3"}


def test_the_drop_is_from_step_0_to_the_lowest_point_of_each_seed():
    first = [0.8, 0.7, *[0.75] * 8, 0.9]
    second = [0.7, 0.7, 0.65, 0.6, *[0.75] * 7]
    text = first_steps.table([row("base", 0, first), row("base", 1, second)])
    assert text.startswith("**clothing, `mobilenet_0.25` at 32 px, `--taps all`**")
    cells = [cell.strip() for cell in text.splitlines()[-1].strip("|").split("|")]
    # Drops of 10 and 10 points; the lowest points lie at different steps.
    assert cells[:7] == ["base", "75.0", "70.0", "67.5", "82.5", "65.0", "10.0 ± 0.0"]
    assert cells[7:] == ["0.500", "2.000", "1.000", "2.00", "2"]


def test_a_gain_is_a_negative_drop_and_one_seed_has_no_error():
    text = first_steps.table([row("EMA 0.98", 0, [0.5, *[0.6] * 10])])
    assert "| 60.0 | -10.0 | 0.500 |" in text
    assert first_steps.mean_and_error(np.array([1.0, 2.0, 3.0])) == "2.0 ± 0.6"


def test_a_phase_differs_from_the_base_as_its_variant_says():
    base = first_steps.phase_of("base", 300)
    assert (base.learning_rate, base.warmup, base.clip_norm) == (3e-4, 0.2, 1.0)
    assert (base.batch_norm, base.ema, base.epochs) == ("frozen", 0.0, 23)
    for variant, fields in first_steps.VARIANTS.items():
        phase = first_steps.phase_of(variant, 300)
        assert {name: getattr(phase, name) for name in fields} == fields or "augment" in fields
        assert phase.epochs == base.epochs


def test_a_run_on_a_few_images_is_continued(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for level, name in ((60, "dark"), (200, "light")):
            for i in range(10):
                path = tmp_path / "bench" / "clothing" / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.normal(level, 20, (40, 40, 3)).clip(0, 255).astype("uint8")
                Image.fromarray(pixels).save(path)
    monkeypatch.setenv("KERAS_TRANSFER_DATA", str(tmp_path))
    monkeypatch.setattr(first_steps, "WEIGHTS", None)
    monkeypatch.setattr(first_steps, "STEPS", 4)
    monkeypatch.setattr(first_steps, "EVERY", 2)
    file = tmp_path / "rows.csv"
    call = ["--backbone", "mobilenet_0.25", "--image-size", "32", "--taps", "all", "--seeds", "1"]
    call += ["--csv", str(file), "--out", str(tmp_path / "a.png"), "--work", str(tmp_path / "w")]
    assert first_steps.main([*call, "--variants", "base", "EMA 0.98"]) == 0
    found = Rows(file, first_steps.FIELDS).rows
    assert [one["variant"] for one in found] == ["base", "EMA 0.98"]
    assert {one["train_images"] for one in found} == {
        "12"
    }  # 8 of 20 are held out; none are of val/
    accuracy, norms = (first_steps.series(found, name) for name in ("accuracy", "gradient_norm"))
    assert accuracy.shape == (2, 3) and norms.shape == (2, 4)
    assert accuracy[0, 0] == accuracy[1, 0]  # both start from one head
    assert (norms > 0).all()
    # The first step is the same; what is measured is the average of the weights.
    assert norms[0, 0] == pytest.approx(norms[1, 0], rel=1e-4)
    loss = first_steps.series(found, "loss")
    assert loss[0, 0] == loss[1, 0] and loss[0, 2] != loss[1, 2]
    assert (tmp_path / "a.png").stat().st_size > 1000
    monkeypatch.setattr(first_steps, "measure", lambda *arguments: pytest.fail("measured again"))
    assert first_steps.main([*call, "--variants", "base", "EMA 0.98"]) == 0


def test_only_tuning_datasets_are_offered(capsys):
    with pytest.raises(SystemExit):
        first_steps.main(["--dataset", "flowers", "--table"])
    assert "invalid choice: 'flowers'" in capsys.readouterr().err
