"""The arithmetic of `scripts/regret.py`."""

import json

import numpy as np
import pytest
import regret


def test_the_luck_of_the_best_does_not_count(rng):
    luck = rng.random((40, 400)) < 0.7  # forty contenders that are all as good as the judged one
    own = rng.random(400) < 0.7
    plain = luck.mean(axis=1).max() - own.mean()
    found, error = regret.regret(luck, own)
    assert plain - found > 0.03 and abs(found) < 2 * error
    better = np.concatenate([luck, rng.random((1, 400)) < 0.95])
    found, error = regret.regret(better, own)
    assert found == pytest.approx(better[-1].mean() - own.mean()) and found > 5 * error


def test_both_tables(tmp_path, rng, capsys):
    for seed in "012":
        for contender, share in (("auto_strategy", 0.6), ("grid_a", 0.6), ("grid_b", 0.9)):
            right = {f"{i}.png": int(i < 100 * share) for i in range(100)}
            cell = {"dataset": "flowers", "shots": "full", "seed": seed, "contender": contender}
            more = {"backbone": "b", "image_size": "128", "cpu": 10.0, "choice": str(seed == "2")}
            document = {**cell, **more, "correct": right}
            (tmp_path / f"{seed}-{contender}.json").write_text(json.dumps(document))
    assert regret.main([str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [cell["regret"] for cell in found["cells"]] == pytest.approx([30.0] * 3)
    assert {cell["share"] for cell in found["cells"]} == {0.5}
    assert found["agreement"] == [
        {"dataset": "flowers", "shots": "full", "seeds": 3, "differ": 1, "cost": 0.0}
    ]
    assert regret.main([str(tmp_path)]) == 0
    assert "mean regret +30.00" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no dataset with lp_ft"):
        regret.main([str(tmp_path), "--of", "lp_ft"])
