"""Which weights move, by kind; low-rank updates, and what is left of them after the merge."""

import re

import keras
import numpy as np
import pytest
from conftest import tiny_backbone, tiny_transformer

import keras_transfer as kt
from keras_transfer.errors import InputError
from keras_transfer.models import LOW_RANK, TRAINED, low_rank
from keras_transfer.models.acceleration import training_model
from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.models.stages import backbone_of, freeze
from keras_transfer.models.trained import MOVES, moving_weights, undecayed
from keras_transfer.schedules.phases import Phase
from keras_transfer.schedules.plans import set_trainable, weight_rules
from keras_transfer.schedules.sizes import attention_stages, memory_of, moving_parameters

NETWORKS = {"convolutions": tiny_backbone, "transformer": tiny_transformer}
# Of the paths of weights, what moves above the first stage.
EXPECTED = {
    ("convolutions", "all"): r"conv2d_\d/kernel",
    ("convolutions", "bias"): r"batch_normalization_\d/beta",
    ("convolutions", "norm"): r"batch_normalization_\d/(gamma|beta)",
    ("convolutions", "bias+norm"): r"batch_normalization_\d/(gamma|beta)",
    ("convolutions", "lora"): r"conv2d_\d/lora_kernel_[ab]",
    ("transformer", "all"): r"(attention\d/\w+|norm\d.|wide\d|narrow\d)/(kernel|bias|gamma|beta)",
    ("transformer", "bias"): r"(attention\d/\w+|wide\d|narrow\d)/bias|norm\d./beta",
    ("transformer", "norm"): r"norm\d./(gamma|beta)",
    ("transformer", "bias+norm"): r"(attention\d/\w+|wide\d|narrow\d)/bias|norm\d./(gamma|beta)",
    ("transformer", "lora"): r"(attention\d/\w+|wide\d|narrow\d)/lora_kernel_[ab]",
}


def model_of(network):
    keras.utils.set_random_seed(0)
    return build_model(NETWORKS[network](), Classification("abc"), image_size=32)


def images(count=12):
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3)).astype("float32")


def train_some(model, network=None, steps=2):
    network = network or model
    head = model.layers[-1].head
    network.compile(keras.optimizers.Adam(1e-2), head.loss(), run_eagerly=True)
    for _ in range(steps):
        network.train_on_batch(images(), np.arange(12) % 3)


def test_every_kind_is_in_the_table():
    assert set(MOVES) == set(TRAINED) == {kind for _, kind in EXPECTED}
    assert set(low_rank._KINDS) == set(LOW_RANK)


@pytest.mark.parametrize("folded", [True, False], ids=["phase", "keras"])
@pytest.mark.parametrize(("network", "train"), EXPECTED)
def test_these_weights_move_and_all_others_stay(network, train, folded):
    """In a phase's own network, and in Keras's `fit` of the model itself."""
    model = model_of(network)
    phase = Phase("p", "stage:1", epochs=1, train=train, lora_rank=2)
    moving = moving_parameters(model, phase, 1)
    done = set_trainable(model, phase, (0, 0))
    wanted = re.compile(rf"(.*/)?({EXPECTED[network, train]}|output/(kernel|bias))\Z")
    first = {id(w) for layer in backbone_of(model).stages[0].layers for w in layer.weights}
    named = {w.path for w in model.weights if wanted.match(w.path) and id(w) not in first}
    assert {w.path for w in model.trainable_weights} == named and len(named) > 2
    assert (
        done.trainable_parameters == moving == sum(w.numpy().size for w in model.trainable_weights)
    )
    before = {w.path: w.numpy() for w in model.weights}
    train_some(model, training_model(model, 1) if folded else model)
    moved = {w.path for w in model.weights if not np.array_equal(w.numpy(), before[w.path])}
    # A bias of keys shifts all scores of a position, which the softmax ignores.
    assert {path for path in moved ^ named if not path.endswith("key/bias")} == set()


def test_a_composite_layer_has_frozen_statistics_too():
    """BatchNorm inside a layer of one's own, which no graph shows."""

    class Block(keras.layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.conv = keras.layers.Conv2D(4, 3)
            self.norm = keras.layers.BatchNormalization()

        def call(self, x, training=None):
            return self.norm(self.conv(x), training=training)

    inputs = keras.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(Block(name="block")(inputs))
    model = build_model(kt.models.Backbone(inputs, x), Classification("abc"), image_size=32)
    for train in ("all", "bias"):
        freeze(model, "none", train=train)
        train_some(model)
    norm = backbone_of(model).get_layer("block").norm
    assert not norm.moving_mean.numpy().any() and norm.beta.numpy().any()
    assert (norm.gamma.numpy() == 1).all()
    freeze(model, "none", batch_norm="train")
    train_some(model)
    assert norm.moving_mean.numpy().any() and not (norm.gamma.numpy() == 1).all()


def test_the_next_freeze_forgets_the_kind():
    model = model_of("transformer")
    freeze(model, "none")
    everything = [w.path for w in model.trainable_weights]
    freeze(model, "none", train="norm")
    assert len(model.trainable_weights) == 4 * 2 + 2
    freeze(model, "none")
    assert [w.path for w in model.trainable_weights] == everything
    with pytest.raises(InputError, match=r"train must be one of all, bias, .*, not 'kernels'"):
        freeze(model, "none", train="kernels")


def test_batch_norm_is_left_out_of_all_where_it_is_frozen():
    layers = tiny_backbone().layers
    paths = [w.path for w in moving_weights(layers, "all", "frozen")]
    assert len(paths) == 3 and all("conv" in path for path in paths)
    assert len(moving_weights(layers, "all", "train")) == 9
    assert len(moving_weights([layers[2], layers[2]], "all", "train")) == 1  # each once


def test_neither_biases_nor_norms_decay():
    """An attention layer's biases have two axes."""
    model = model_of("transformer")
    freeze(model, "none")
    plain = undecayed([model])
    for weight in model.weights:
        assert (id(weight) in plain) == (not weight.path.endswith("kernel")), weight.path
    scale = keras.layers.RMSNormalization()  # and any other vector, such as a layer scale
    scale.build((None, 4))
    other = keras.layers.PReLU()
    other.build((None, 4))
    assert undecayed([scale, other]) == {id(scale.weights[0]), id(other.weights[0])}
    rules = weight_rules(model, Phase("p", "none", epochs=1, weight_decay=0.1))
    for rule, weight in zip(rules, model.trainable_weights, strict=True):
        assert rule.decay == (0.1 if weight.path.endswith("kernel") else 0.0), weight.path


# -- low-rank updates -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "pattern", "count"),
    [
        ("attention", r"attention", 8),
        ("dense", r"attention|wide|narrow", 12),
        ("conv", r"patches", 1),
        ("dense+conv", r"", 13),
        ("attention+conv", r"attention|patches", 9),
        ("embedding", r"never", 0),
        ("query|value", r"query|value", 4),
        ("^wide", r"wide", 2),
        ("patches", r"patches", 1),
        ("nothing like it", r"never", 0),
    ],
)
def test_layers_are_named_by_kind_or_by_a_pattern(which, pattern, count):
    found = low_rank.low_rank_layers(tiny_transformer().layers, which)
    assert len(found) == count
    assert all(re.search(pattern, layer.weights[0].path) for layer in found)


def test_layers_that_cannot_have_an_update_are_left_out():
    layers = [
        keras.layers.Dense(3, kernel_constraint="max_norm"),
        keras.layers.DepthwiseConv1D(3),
        keras.layers.Dense(3),
        keras.layers.Conv1D(3, 1, kernel_constraint="max_norm"),
    ]
    for layer in layers:
        layer.build((None, 4, 4))
    table = keras.layers.Embedding(5, 2, embeddings_constraint="max_norm")
    table.build()
    found = low_rank.low_rank_layers([*layers, layers[2], table], "dense+conv+embedding")
    assert found == [layers[2]]


def test_a_layer_that_is_used_twice_has_one_update():
    inputs = keras.Input((4,))
    shared = keras.layers.Dense(4)
    model = keras.Model(inputs, keras.Sequential([shared])(shared(inputs)))
    assert low_rank.low_rank_layers(model.layers, "dense") == [shared]
    low_rank.add_low_rank([shared], 2, 4.0, (0, 0))
    assert list(low_rank.updated_layers(model)) == [shared]
    assert len(low_rank.factors_of(model)) == 2 and len(low_rank.plain_variables(model)) == 2


LAYERS = {
    "dense": (lambda: keras.layers.Dense(4), (2, 3)),
    "einsum": (lambda: keras.layers.EinsumDense("abc,cde->abde", (None, 2, 5)), (2, 7, 3)),
    "conv": (lambda: keras.layers.Conv2D(4, (3, 2)), (2, 5, 5, 3)),
    "embedding": (lambda: keras.layers.Embedding(6, 4), (2, 3)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("rank", "alpha"), [(1, 1.0), (2, 5.0)])
def test_an_update_is_a_times_b_times_alpha_by_rank(kind, rank, alpha, rng):
    make, shape = LAYERS[kind]
    layer = make()
    model = keras.Sequential([keras.Input(shape[1:]), layer])
    x = rng.integers(0, 6, shape) if kind == "embedding" else rng.normal(size=shape)
    plain, order = model(x).numpy(), [w.path for w in model.variables]
    matrix = layer.weights[0]
    start = matrix.numpy()
    assert low_rank.factor_sizes([layer], rank) == rank * (
        start.size // start.shape[-1] + start.shape[-1]
    )
    low_rank.add_low_rank([layer], rank, alpha, (0, 1))
    assert not matrix.trainable and list(low_rank.updated_layers(model)) == [layer]
    a, b = low_rank.factors_of(model)
    assert low_rank.factor_sizes([layer], rank) == a.numpy().size + b.numpy().size
    assert a.numpy().std() > 0.01 and not b.numpy().any()
    np.testing.assert_array_equal(model(x), plain)  # nothing has changed yet
    b.assign(rng.normal(size=b.shape))
    update = alpha / rank * np.tensordot(a.numpy(), b.numpy(), 1)
    moved = model(x).numpy()
    assert np.abs(moved - plain).max() > 0.01
    assert [v.path for v in low_rank.plain_variables(model)] == order
    values = low_rank.merged_values(model)
    np.testing.assert_allclose(values[0], start + update, atol=1e-6)
    np.testing.assert_array_equal(matrix.numpy(), start)
    traced = keras.ops.convert_to_numpy(model.predict(x, verbose=0))  # by a graph that adds A and B
    low_rank.merge(model)
    np.testing.assert_allclose(model(x), moved, atol=1e-5)
    np.testing.assert_allclose(model.predict(x, verbose=0), traced, atol=1e-5)
    assert [v.path for v in model.variables] == order and matrix.trainable
    for value, variable in zip(values, model.variables, strict=True):
        np.testing.assert_array_equal(value, variable.numpy())
    assert not layer.lora_enabled and low_rank.factors_of(model) == []
    low_rank.add_low_rank([layer], rank, alpha, (0, 1))  # again, from the merged weights
    np.testing.assert_allclose(model(x), moved, atol=1e-5)


def test_the_first_factors_are_a_function_of_seed_and_place():
    def drawn(seed):
        backbone = tiny_transformer()
        layers = low_rank.low_rank_layers(backbone.layers, "dense")
        low_rank.add_low_rank(layers, 4, 8.0, seed)
        assert not any(layer.lora_kernel_b.numpy().any() for layer in layers)
        return [layer.lora_kernel_a.numpy() for layer in layers]

    first, again, other, later = map(drawn, [(0, 1), (0, 1), (1, 1), (0, 2)])
    assert len(first) == 12
    for a, b, c, d in zip(first, again, other, later):
        np.testing.assert_array_equal(a, b)
        assert not np.allclose(a, c) and not np.allclose(a, d)
    assert not np.allclose(first[0], first[1])  # query and key of one layer


@pytest.mark.parametrize("network", NETWORKS)
def test_merged_equals_unmerged(network, tmp_path):
    """By the phase's network, by the model, and by the file that is saved from it."""
    model = model_of(network)
    freeze(model, "none", batch_norm="train")
    weights, trainable = (
        [w.path for w in model.weights],
        [w.path for w in model.trainable_weights],
    )
    set_trainable(model, Phase("p", "none", epochs=1, train="lora", lora_rank=2), (0, 0))
    phase_network = training_model(model, 0)
    train_some(model, phase_network)
    batch = images(8)
    before = phase_network(batch).numpy()
    low_rank.merge(model)
    np.testing.assert_allclose(model(batch), before, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(phase_network(batch), before, rtol=1e-5, atol=1e-5)
    freeze(model, "none", batch_norm="train")
    assert [w.path for w in model.weights] == weights
    assert [w.path for w in model.trainable_weights] == trainable
    model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(kt.load_model(tmp_path / "model.keras")(batch), before, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_merges_in_full_precision(policy):
    keras.config.set_dtype_policy(policy)
    model = model_of("transformer")
    keras.config.set_dtype_policy("float32")
    set_trainable(model, Phase("p", "none", epochs=1, train="lora", lora_rank=2), (0, 0))
    wide = backbone_of(model).get_layer("wide0")
    wide.lora_kernel_b.assign(np.full((2, 24), 1e-4, "float32"))
    expected = wide.weights[0].numpy() + 8.0 * (
        wide.lora_kernel_a.numpy() @ wide.lora_kernel_b.numpy()
    )
    low_rank.merge(model)
    assert wide.weights[0].dtype == "float32"
    np.testing.assert_allclose(wide.weights[0].numpy(), expected, atol=1e-7)


def test_clearing_leaves_the_matrices():
    model = model_of("convolutions")
    set_trainable(model, Phase("p", "none", epochs=1, train="lora", lora_rank=2), (0, 0))
    train_some(model)
    start = [v.numpy() for v in low_rank.plain_variables(model)]
    low_rank.clear_updates(model)
    for a, b in zip(start, low_rank.merged_values(model), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(a.numpy().any() for a in low_rank.factors_of(model)[::2])


# -- what it takes --------------------------------------------------------------------------------


def test_a_kind_that_nothing_has_is_an_error():
    model = model_of("convolutions")
    for where, phase in (
        ("'attention' fits no layer", Phase("p", epochs=1, train="lora", lora_layers="attention")),
        ("'quary' fits no layer", Phase("p", epochs=1, train="lora", lora_layers="quary")),
    ):
        with pytest.raises(InputError, match=f"Phase 'p': lora_layers {where} .*attention, dense"):
            set_trainable(model, phase, (0, 0))
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=False)(inputs)
    bare = kt.models.Backbone(inputs, keras.layers.GlobalAveragePooling2D()(x))
    bare = build_model(bare, Classification("ab"), image_size=32)
    phase = Phase("p", epochs=1, train="bias")
    with pytest.raises(InputError, match="no weights of the kind 'bias'"):
        moving_parameters(bare, phase, 0)
    head = 4 * 2 + 2
    assert moving_parameters(bare, phase, 1) == head  # frozen as a whole
    lora = Phase("p", epochs=1, train="lora", lora_layers="attention")
    assert moving_parameters(bare, lora, 1) == head


def test_a_transformer_is_known_by_its_layers():
    assert attention_stages(model_of("convolutions")) == 0
    model = model_of("transformer")
    assert attention_stages(model) == len(backbone_of(model).stages) == 5


def test_folded_norms_need_no_memory():
    model = model_of("convolutions")
    frozen, trained = (
        memory_of(model, Phase("p", epochs=1, batch_norm=policy), 0, 8, 32)
        for policy in ("frozen", "train")
    )
    outputs = 15 * 15 * 8 + 7 * 7 * 16 + 3 * 3 * 16
    assert trained - frozen == 4 * 8 * outputs + 4 * 3 * 2 * (8 + 16 + 16)


def test_memory_grows_with_what_moves_and_with_what_is_seen():
    model = model_of("transformer")

    def memory(frozen=0, batch=8, size=32, **fields):
        return memory_of(model, Phase("p", epochs=1, **fields), frozen, batch, size)

    weights = 4 * model.count_params()
    head, all_of = 12 * 3 + 3, model.count_params()
    assert memory(frozen=5) == weights + 4 * 3 * head
    assert memory(frozen=5, ema=0.9) == weights + 4 * 4 * head
    assert memory(ema=0.9) - memory() == memory(l2_sp=0.1) - memory() == 4 * all_of
    assert memory(accumulate=2) - memory() == 4 * all_of
    activations = memory() - weights - 4 * 3 * all_of
    assert memory(batch=16) - memory() == activations
    assert memory(size=64) - memory() == 3 * activations
    small = memory(train="norm") - weights - activations
    assert small == 4 * 3 * (head + 4 * 2 * 12)
    # A block: two norms, two sums, the attention's queries, keys, values and output with its scores
    # of 2 heads, and both dense layers with the width inside.
    inside = 2 * (16 * 12 * 4 + 2 * 2 * 16**2)  # each passes through another operation
    block = 16 * 12 * 4 + 16 * 12 + inside + 16 * 24 + 16 * 12
    assert activations == 4 * 8 * (2 * 32 * 32 * 3 + 2 * 16 * 12 + 2 * block + 12)
