"""What `freeze` means by each way to say it."""

import keras
import numpy as np
import pytest
from conftest import tiny_backbone

from keras_transfer.cli.demo import small_backbone
from keras_transfer.data import from_directory
from keras_transfer.errors import InputError
from keras_transfer.models.builders import build_model, heads_of, summary
from keras_transfer.models.framing import framing_of
from keras_transfer.models.heads import Classification
from keras_transfer.models.stages import (
    Backbone,
    Frozen,
    backbone_of,
    freeze,
    frozen_stages,
    quick_statistics,
    stage_of_weights,
)
from keras_transfer.training.trainer import Trainer


@pytest.fixture(scope="module")
def model():
    """One for all: `freeze` forgets what was before."""
    return build_model("mobilenet_v2_0.35", Classification("ab"), image_size=32, weights=None)


@pytest.mark.parametrize(
    "what, stages",
    [
        ("none", 0),
        ("all", 18),
        (0, 0),
        (0.0, 0),
        (1.0, 18),
        ("stage:1", 1),
        ("stage:18", 18),
        ("block_2_add", 3),  # the last layer of the third stage
        ("block_2_project", 2),  # inside the third stage: it cannot be frozen as a whole
    ],
)
def test_ways_to_say_it(model, what, stages):
    assert frozen_stages(backbone_of(model), what) == stages


def test_layer_count_is_keras_layers_up_to_k_rounded_down(model):
    backbone = backbone_of(model)
    for k in (1, 30, 57, 100, 154):
        done = freeze(model, k)
        assert done.layers <= k
        frozen = {x.name for stage in backbone.stages[: done.stages] for x in stage.layers}
        assert frozen <= {layer.name for layer in backbone.layers[:k]}
        next_stage = backbone.stages[done.stages]
        assert done.layers + len(next_stage.layers) > k


def test_fraction_and_stage_object(model):
    backbone = backbone_of(model)
    assert frozen_stages(backbone, backbone.stages[4]) == 5
    half = freeze(model, 0.5)
    assert (
        half.layers <= 0.5 * half.of_layers < half.layers + len(backbone.stages[half.stages].layers)
    )


@pytest.mark.parametrize("what", [-1, 157, 1.5, -0.1, "no_such_layer", "stage:19", True, None])
def test_nonsense_is_refused(model, what):
    with pytest.raises(InputError, match="Cannot freeze"):
        freeze(model, what)


def test_exactly_the_named_weights_train(model):
    backbone = backbone_of(model)
    freeze(model, "stage:10")
    expected = {
        id(w)
        for stage in backbone.stages[10:]
        for layer in stage.layers
        if not isinstance(layer, keras.layers.BatchNormalization)
        for w in layer.weights
    }
    expected |= {id(w) for w in model.get_layer("output").weights}
    assert {id(w) for w in model.trainable_weights} == expected


def test_batch_norm_policy(model):
    def norms_that_train():
        return sum(
            layer.trainable
            for layer in backbone_of(model).layers
            if isinstance(layer, keras.layers.BatchNormalization)
        )

    freeze(model, "none")
    assert norms_that_train() == 0
    freeze(model, "none", batch_norm="train")
    assert norms_that_train() == 52
    with pytest.raises(InputError, match="batch_norm"):
        freeze(model, "none", batch_norm="sometimes")


def test_freezing_forgets_what_was_before(model):
    model.get_layer("output").trainable = False
    freeze(model, "all")
    freeze(model, "none", batch_norm="train")
    assert len(model.trainable_weights) == len(
        build_model(
            "mobilenet_v2_0.35", Classification("ab"), image_size=32, weights=None
        ).trainable_weights
    )


def test_summary_counts_all_parameters(model):
    done = freeze(model, "stage:17")
    rows = [line.split() for line in summary(model).splitlines()[1:]]
    assert len(rows) == 19 and rows[-1][0] == "head"
    total, trained = (sum(int(r[i].replace(",", "")) for r in rows) for i in (-2, -1))
    assert (total, trained) == (done.parameters, done.trainable_parameters)
    assert "17 of 18 stages" in str(done)


@pytest.mark.parametrize("use", [freeze, summary, heads_of, framing_of])
def test_a_path_is_not_a_model(use):
    with pytest.raises(InputError, match=r"a Keras model, not 'runs/a': load .*load_model\(PATH\)"):
        use("runs/a")


def test_a_foreign_model_says_what_to_do():
    foreign = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    with pytest.raises(InputError, match="build_model"):
        freeze(foreign, "all")


# -- statistics that follow -----------------------------------------------------------------------


def norms_of(model):
    norm = keras.layers.BatchNormalization
    return [layer for layer in backbone_of(model).layers if isinstance(layer, norm)]


def test_quick_statistics_give_the_momenta_back():
    model = build_model(small_backbone(), Classification("ab"), image_size=32)
    for layer in norms_of(model):
        layer.momentum = 0.999
    norms_of(model)[0].momentum = 0.5  # quick enough
    momenta = [layer.momentum for layer in norms_of(model)]
    with quick_statistics(model):
        assert [layer.momentum for layer in norms_of(model)] == [0.5] + [0.9] * (len(momenta) - 1)
    assert [layer.momentum for layer in norms_of(model)] == momenta
    with pytest.raises(RuntimeError, match="boom"), quick_statistics(model):
        raise RuntimeError("boom")
    assert [layer.momentum for layer in norms_of(model)] == momenta


def test_a_network_from_scratch_is_evaluated_as_it_learned(colours, tmp_path, cache):
    """At 0.999 the statistics after these steps are nearly those that it was born with."""
    data = from_directory(colours, progress=False)
    keras.utils.set_random_seed(0)
    model = build_model(small_backbone(), Classification(data.class_names), image_size=32)
    for layer in norms_of(model):
        layer.momentum = 0.999
    trainer = Trainer(model, "from_scratch", epochs=8, batch_size=8, keep="last")
    run = trainer.fit(data, tmp_path / "run")
    assert run.metrics["val"]["accuracy"] > 0.9
    assert {layer.momentum for layer in norms_of(model)} == {0.999}
    moved = [float(np.abs(layer.moving_variance - 1).max()) for layer in norms_of(model)]
    assert max(moved) > 0.5


# -- three stages, of 5, 3 and 4 layers: every number can be counted -------------------------------


@pytest.fixture
def three_stages():
    return build_model(tiny_backbone(), Classification("ab"), image_size=32)


def test_three_stages_are_frozen_up_to_the_boundary_below(three_stages):
    backbone = backbone_of(three_stages)
    for what, stages in (
        ("all", 3),
        ("none", 0),
        (4, 0),
        (5, 1),
        (7, 1),
        (8, 2),
        (11, 2),
        (12, 3),
        (0.41, 0),  # 4.92 of 12 layers
        (0.42, 1),  # 5.04
        (0.99, 2),
        (1.0, 3),
        (1, 0),  # a layer, not all
        ("stage:0", 0),
        ("stage:2", 2),
        ("stage:3", 3),
        ("top:0", 3),
        ("top:1", 2),
        ("top:3", 0),
        ("rescaling", 0),
        ("batch_normalization", 0),  # the last but one of its stage
        ("re_lu", 1),
        ("conv2d_1", 1),
        ("re_lu_1", 2),
        ("global_average_pooling2d", 3),
    ):
        assert frozen_stages(backbone, what) == stages, what


def test_three_stages_and_what_they_have_not(three_stages):
    for what, reason in (
        (-1, "-1 layers: tiny has 12"),
        (13, "13 layers: tiny has 12"),
        (-0.01, "share of -0.01"),
        (1.01, "share of 1.01"),
        (float("nan"), "share of nan"),
        ("stage:4", "no such layer; it has 3 stages"),
        ("stage:²", "no such layer"),
        ("top:4", "no such layer; it has 3 stages"),
        ("stage:-1", "no such layer"),
        ("stage", "no such layer"),
        ("part:1", "no such layer"),
        (False, "pass 'all', 'none'"),
        ((1,), "pass 'all', 'none'"),
    ):
        with pytest.raises(InputError, match=rf"^Cannot freeze .*{reason}"):
            freeze(three_stages, what)
    for what in ("stage:1:2", "top:a:1"):
        with pytest.raises(InputError, match=f"^Cannot freeze '{what}'"):
            freeze(three_stages, what)
    words = "^train must be one of all, bias, norm, bias\\+norm, lora, not 'some'\\.$"
    with pytest.raises(InputError, match=words):
        freeze(three_stages, train="some")


def test_three_stages_and_the_weights_that_train(three_stages):
    def trained():
        return [w.path.split("/")[-2] for w in three_stages.trainable_weights]

    assert freeze(three_stages) == Frozen(3, 3, 12, 12, 34, 3866)  # by default all of them
    assert trained() == ["output"] * 2 and not backbone_of(three_stages).trainable
    done = freeze(three_stages, 6)
    assert done == Frozen(1, 3, 5, 12, 34 + 1152 + 2304, 3866)
    assert str(done) == ("frozen: 1 of 3 stages (5 of 12 layers); 3,490 of 3,866 parameters train")
    assert trained() == ["conv2d_1", "conv2d_2", "output", "output"]
    freeze(three_stages, "top:1", batch_norm="train")
    norm = ["batch_normalization_2"] * 2
    assert trained() == ["conv2d_2", *norm, "output", "output"]
    with pytest.raises(InputError, match=r"batch_norm must be one of \('frozen', 'train'\)"):
        freeze(three_stages, batch_norm="Train")


def test_three_stages_without_a_head(three_stages):
    """A backbone is taken too."""
    backbone = backbone_of(three_stages)
    assert freeze(backbone, "stage:2") == Frozen(2, 3, 8, 12, 2304, 3832)
    assert [line.split()[0] for line in summary(backbone).splitlines()] == ["stage", *"123"]


def test_three_stages_in_a_table(three_stages):
    freeze(three_stages, "stage:1")
    assert summary(three_stages).splitlines() == [
        "stage  last layer with weights  layers  parameters  trainable",
        "1      batch_normalization           5         248          0",
        "2      batch_normalization_1         3       1,216      1,152",
        "3      batch_normalization_2         4       2,368      2,304",
        "head                                 2          34         34",
    ]
    inputs = keras.Input((8, 8, 3))
    long = Backbone(inputs, keras.layers.Conv2D(2, 3, name="c" * 50)(inputs))
    assert summary(long).splitlines()[1].split() == ["1", "c" * 50, "2", "56", "56"]


def test_three_stages_and_whose_a_weight_is(three_stages):
    found = stage_of_weights(three_stages)
    expected = {
        "conv2d": 0,
        "batch_normalization": 0,
        "conv2d_1": 1,
        "batch_normalization_1": 1,
        "conv2d_2": 2,
        "batch_normalization_2": 2,
    }
    assert len(found) == 15
    for weight in three_stages.weights:
        assert found.get(id(weight)) == expected.get(weight.path.split("/")[-2]), weight.path


def test_three_stages_with_quick_statistics(three_stages):
    norms = norms_of(three_stages)
    norms[0].momentum, norms[1].momentum = 0.99, 0.85
    with quick_statistics(three_stages):
        assert [layer.momentum for layer in norms] == [0.9, 0.85, 0.9]
    assert [layer.momentum for layer in norms] == [0.99, 0.85, 0.9]
