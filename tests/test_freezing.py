"""What `freeze` means by each way to say it."""

import keras
import numpy as np
import pytest

from keras_transfer.builders import backbone_of, build_model
from keras_transfer.data import from_directory
from keras_transfer.demo import small_backbone
from keras_transfer.errors import InputError
from keras_transfer.freezing import freeze, frozen_stages, quick_statistics, summary
from keras_transfer.heads import Classification
from keras_transfer.training import Trainer


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


def test_a_network_from_scratch_is_evaluated_as_it_learnt(colours, tmp_path, cache):
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
