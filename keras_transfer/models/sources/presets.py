"""Presets of KerasHub as plain data, and what can be checked about a name before Keras is imported.

Contract tests compare the table with the installed KerasHub.
"""

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from keras_transfer.errors import InputError
from keras_transfer.utils.extras import require

KINDS = ("image", "text")


@dataclass(frozen=True)
class HubFamily:
    """A class of KerasHub that gives backbones.

    Attributes:
        kind: what it reads, one of `KINDS`.
        model_types: names of the family in the `config.json` of Hugging Face.
    """

    kind: str
    model_types: tuple[str, ...] = ()


FAMILIES = {
    "ViTBackbone": HubFamily("image", ("vit",)),
    "DeiTBackbone": HubFamily("image", ("deit",)),
    "DINOV2Backbone": HubFamily("image", ("dinov2", "dinov2_with_registers")),
    "DINOV3Backbone": HubFamily("image", ("dinov3_vit",)),
    "CLIPBackbone": HubFamily("image"),
    "CLIPVisionEncoder": HubFamily("image"),
    "SigLIPBackbone": HubFamily("image"),
    "SigLIPVisionEncoder": HubFamily("image"),
    "ResNetBackbone": HubFamily("image"),
    "DenseNetBackbone": HubFamily("image"),
    "EfficientNetBackbone": HubFamily("image"),
    "MobileNetBackbone": HubFamily("image"),
    "CSPNetBackbone": HubFamily("image"),
    "VGGBackbone": HubFamily("image"),
    "XceptionBackbone": HubFamily("image"),
    "BertBackbone": HubFamily("text", ("bert",)),
    "RobertaBackbone": HubFamily("text", ("roberta",)),
    "XLMRobertaBackbone": HubFamily("text", ("xlm-roberta",)),
    "DistilBertBackbone": HubFamily("text", ("distilbert",)),
    "AlbertBackbone": HubFamily("text", ("albert",)),
    "ElectraBackbone": HubFamily("text"),
    "DebertaV3Backbone": HubFamily("text"),
}


@dataclass(frozen=True)
class Preset:
    """One row of the table.

    Attributes:
        name: as in `keras_hub.models.Backbone.from_preset`.
        family: a key of `FAMILIES`.
        collection: the model's name on Kaggle, which groups presets.
        parameters: as the publisher counts them; for CLIP and SigLIP with the text encoder.
        size: height and width of the images, or the largest number of tokens of a text.
    """

    name: str
    family: str
    collection: str
    parameters: int
    size: int

    @property
    def kind(self) -> str:
        return FAMILIES[self.family].kind

    @property
    def folder(self) -> Path | None:
        """The downloaded preset on this machine, or None."""
        folder = kaggle_cache() / "keras" / self.collection / "keras" / self.name
        return next((file.parent for file in sorted(folder.glob("*/model.weights.*"))), None)


def _rows(family, collection, parameters: Mapping[str, int]):
    text = FAMILIES[family].kind == "text"
    for name, count in parameters.items():
        found = re.search(r"_(224|256|336|384|448|512)(?=_|$)", name)
        size = 512 if text else int(found[1]) if found else 224
        yield Preset(name, family, collection, count, size)


# fmt: off
PRESETS = {preset.name: preset for preset in (
    *_rows("ViTBackbone", "vit", {
        "vit_base_patch16_224_imagenet": 85_798_656, "vit_base_patch16_384_imagenet": 86_090_496,
        "vit_large_patch16_224_imagenet": 303_301_632, "vit_large_patch16_384_imagenet": 303_690_752,
        "vit_base_patch32_384_imagenet": 87_528_192, "vit_large_patch32_384_imagenet": 305_607_680,
        "vit_base_patch16_224_imagenet21k": 85_798_656, "vit_base_patch32_224_imagenet21k": 87_455_232,
        "vit_huge_patch14_224_imagenet21k": 630_764_800, "vit_large_patch16_224_imagenet21k": 303_301_632,
        "vit_large_patch32_224_imagenet21k": 305_510_400,
    }),
    *_rows("DeiTBackbone", "deit", {
        "deit_base_distilled_patch16_384_imagenet": 86_092_032,
        "deit_base_distilled_patch16_224_imagenet": 85_800_192, "deit_tiny_distilled_patch16_224_imagenet": 5_524_800,
        "deit_small_distilled_patch16_224_imagenet": 21_666_432,
    }),
    *_rows("DINOV2Backbone", "dinov2", {
        "dinov2_small": 22_582_656, "dinov2_base": 87_632_640, "dinov2_large": 305_771_520,
        "dinov2_giant": 1_138_585_088, "dinov2_with_registers_small": 22_584_192,
        "dinov2_with_registers_base": 87_635_712, "dinov2_with_registers_large": 305_775_616,
        "dinov2_with_registers_giant": 1_138_591_232,
    }),
    *_rows("DINOV3Backbone", "dinov3", {
        "dinov3_vit_small_lvd1689m": 21_600_000, "dinov3_vit_small_plus_lvd1689m": 29_000_000,
        "dinov3_vit_base_lvd1689m": 86_000_000, "dinov3_vit_large_lvd1689m": 300_000_000,
        "dinov3_vit_huge_plus_lvd1689m": 840_000_000, "dinov3_vit_7b_lvd1689m": 6_700_000_000,
        "dinov3_vit_large_sat493m": 300_000_000, "dinov3_vit_7b_sat493m": 6_700_000_000,
    }),
    *_rows("CLIPBackbone", "clip", {
        "clip_vit_base_patch16": 149_620_934, "clip_vit_base_patch32": 151_277_363,
        "clip_vit_large_patch14": 427_616_770, "clip_vit_large_patch14_336": 427_944_770,
        "clip_vit_b_32_laion2b_s34b_b79k": 151_277_363, "clip_vit_h_14_laion2b_s32b_b79k": 986_109_698,
        "clip_vit_g_14_laion2b_s12b_b42k": 1_366_678_530, "clip_vit_bigg_14_laion2b_39b_b160k": 2_539_567_362,
    }),
    *_rows("SigLIPBackbone", "siglip", {
        "siglip_base_patch16_224": 203_156_230, "siglip_base_patch16_256": 203_202_370,
        "siglip_base_patch16_384": 203_448_450, "siglip_base_patch16_512": 203_792_962,
        "siglip_large_patch16_256": 652_151_106, "siglip_large_patch16_384": 652_479_106,
        "siglip_so400m_patch14_224": 877_360_578, "siglip_so400m_patch14_384": 877_961_291,
        "siglip_so400m_patch16_256_i18n": 1_128_759_282, "siglip_base_patch16_256_multilingual": 370_626_370,
        "siglip2_base_patch16_224": 375_188_230, "siglip2_base_patch16_256": 375_234_370,
        "siglip2_base_patch32_256": 376_856_194, "siglip2_base_patch16_384": 376_856_194,
        "siglip2_large_patch16_256": 881_527_106, "siglip2_large_patch16_384": 881_855_106,
        "siglip2_large_patch16_512": 882_314_306, "siglip2_giant_opt_patch16_256": 1_871_394_226,
        "siglip2_giant_opt_patch16_384": 1_871_886_066, "siglip2_so400m_patch14_224": 1_135_463_922,
        "siglip2_so400m_patch14_384": 1_136_009_291, "siglip2_so400m_patch16_256": 1_135_671_282,
        "siglip2_so400m_patch16_384": 1_136_040_242, "siglip2_so400m_patch16_512": 1_136_555_698,
    }),
    *_rows("SigLIPBackbone", "medsiglip", {
        "medsiglip_900m_448": 878_301_426,
    }),
    *_rows("ResNetBackbone", "resnetv1", {
        "resnet_18_imagenet": 11_186_112, "resnet_50_imagenet": 23_561_152, "resnet_101_imagenet": 42_605_504,
        "resnet_152_imagenet": 58_295_232,
    }),
    *_rows("ResNetBackbone", "resnetv2", {
        "resnet_v2_50_imagenet": 23_561_152, "resnet_v2_101_imagenet": 42_605_504,
    }),
    *_rows("ResNetBackbone", "resnet_vd", {
        "resnet_vd_18_imagenet": 11_722_824, "resnet_vd_34_imagenet": 21_838_408, "resnet_vd_50_imagenet": 25_629_512,
        "resnet_vd_50_ssld_imagenet": 25_629_512, "resnet_vd_50_ssld_v2_imagenet": 25_629_512,
        "resnet_vd_50_ssld_v2_fix_imagenet": 25_629_512, "resnet_vd_101_imagenet": 44_673_864,
        "resnet_vd_101_ssld_imagenet": 44_673_864, "resnet_vd_152_imagenet": 60_363_592,
        "resnet_vd_200_imagenet": 74_933_064,
    }),
    *_rows("DenseNetBackbone", "densenet", {
        "densenet_121_imagenet": 7_037_504, "densenet_169_imagenet": 12_642_880, "densenet_201_imagenet": 18_321_984,
    }),
    *_rows("EfficientNetBackbone", "efficientnet", {
        "efficientnet_b0_ra_imagenet": 5_288_548, "efficientnet_b0_ra4_e3600_r224_imagenet": 5_288_548,
        "efficientnet_b1_ft_imagenet": 7_794_184, "efficientnet_b1_ra4_e3600_r240_imagenet": 7_794_184,
        "efficientnet_b2_ra_imagenet": 9_109_994, "efficientnet_b3_ra2_imagenet": 12_233_232,
        "efficientnet_b4_ra2_imagenet": 19_341_616, "efficientnet_b5_sw_imagenet": 30_389_784,
        "efficientnet_b5_sw_ft_imagenet": 30_389_784, "efficientnet2_rw_m_agc_imagenet": 53_236_442,
        "efficientnet2_rw_s_ra2_imagenet": 23_941_296, "efficientnet2_rw_t_ra2_imagenet": 13_649_388,
        "efficientnet_lite0_ra_imagenet": 4_652_008,
    }),
    *_rows("MobileNetBackbone", "mobilenetv3", {
        "mobilenet_v3_small_050_imagenet": 278_784, "mobilenet_v3_small_100_imagenet": 939_120,
        "mobilenet_v3_large_100_imagenet": 2_996_352, "mobilenet_v3_large_100_imagenet_21k": 2_996_352,
    }),
    *_rows("CSPNetBackbone", "cspdarknet", {
        "csp_darknet_53_ra_imagenet": 27_642_184, "csp_resnext_50_ra_imagenet": 20_569_896,
        "csp_resnet_50_ra_imagenet": 21_616_168, "darknet_53_imagenet": 41_609_928,
    }),
    *_rows("VGGBackbone", "vgg", {
        "vgg_11_imagenet": 9_220_480, "vgg_13_imagenet": 9_404_992, "vgg_16_imagenet": 14_714_688,
        "vgg_19_imagenet": 20_024_384,
    }),
    *_rows("XceptionBackbone", "xception", {
        "xception_41_imagenet": 20_861_480,
    }),
    *_rows("BertBackbone", "bert", {
        "bert_tiny_en_uncased": 4_385_920, "bert_small_en_uncased": 28_763_648, "bert_medium_en_uncased": 41_373_184,
        "bert_base_en_uncased": 109_482_240, "bert_base_en": 108_310_272, "bert_base_zh": 102_267_648,
        "bert_base_multi": 177_853_440, "bert_large_en_uncased": 335_141_888, "bert_large_en": 333_579_264,
        "bert_tiny_en_uncased_sst2": 4_385_920,
    }),
    *_rows("BertBackbone", "sentence-transformers", {
        "all_minilm_l6_v2_en": 22_713_216, "all_minilm_l6_v1_en": 22_713_216, "all_minilm_l12_v2_en": 33_360_000,
        "paraphrase_minilm_l3_v2_en": 17_066_496, "paraphrase_minilm_l6_v2_en": 22_713_216,
        "paraphrase_minilm_l12_v2_en": 33_360_000, "multi_qa_minilm_l6_cos_v1_en": 22_713_216,
        "multi_qa_minilm_l6_dot_v1_en": 22_713_216, "msmarco_minilm_l6_cos_v5_en": 22_713_216,
        "msmarco_minilm_l12_cos_v5_en": 33_360_000,
    }),
    *_rows("BertBackbone", "bge", {
        "bge_small_en": 33_360_000, "bge_base_en": 109_482_240, "bge_large_en": 335_141_888,
        "bge_small_v1.5_en": 33_360_000, "bge_base_v1.5_en": 109_482_240, "bge_large_v1.5_en": 335_141_888,
        "bge_base_zh": 102_267_648, "bge_large_zh": 325_522_432, "bge_small_v1.5_zh": 23_953_920,
        "bge_base_v1.5_zh": 102_267_648, "bge_large_v1.5_zh": 325_522_432, "bge_llm_embedder": 109_482_240,
    }),
    *_rows("BertBackbone", "multilingual-e5", {
        "multilingual_e5_small": 117_653_760,
    }),
    *_rows("BertBackbone", "mxbai-embed", {
        "mxbai_embed_large_v1_en": 335_141_888, "mxbai_embed_2d_large_v1_en": 335_141_888,
        "mxbai_embed_xsmall_v1_en": 24_089_472,
    }),
    *_rows("RobertaBackbone", "roberta", {
        "roberta_base_en": 124_052_736, "roberta_large_en": 354_307_072,
    }),
    *_rows("XLMRobertaBackbone", "xlm_roberta", {
        "xlm_roberta_base_multi": 277_450_752, "xlm_roberta_large_multi": 558_837_760,
    }),
    *_rows("XLMRobertaBackbone", "bge", {
        "bge_m3": 566_702_080,
    }),
    *_rows("XLMRobertaBackbone", "multilingual-e5", {
        "multilingual_e5_base": 277_450_752, "multilingual_e5_large": 558_837_760,
    }),
    *_rows("DistilBertBackbone", "distil_bert", {
        "distil_bert_base_en_uncased": 66_362_880, "distil_bert_base_en": 65_190_912,
        "distil_bert_base_multi": 134_734_080,
    }),
    *_rows("AlbertBackbone", "albert", {
        "albert_base_en_uncased": 11_683_584, "albert_large_en_uncased": 17_683_968,
        "albert_extra_large_en_uncased": 58_724_864, "albert_extra_extra_large_en_uncased": 222_595_584,
    }),
    *_rows("ElectraBackbone", "electra", {
        "electra_small_discriminator_uncased_en": 13_548_800, "electra_small_generator_uncased_en": 13_548_800,
        "electra_base_discriminator_uncased_en": 109_482_240, "electra_base_generator_uncased_en": 33_576_960,
        "electra_large_discriminator_uncased_en": 335_141_888, "electra_large_generator_uncased_en": 51_065_344,
    }),
    *_rows("DebertaV3Backbone", "deberta_v3", {
        "deberta_v3_extra_small_en": 70_682_112, "deberta_v3_small_en": 141_304_320,
        "deberta_v3_base_en": 183_831_552, "deberta_v3_large_en": 434_012_160,
        "deberta_v3_base_multi": 278_218_752,
    }),
)}
# fmt: on

_SCHEMES = {"hf": "https://huggingface.co", "kaggle": "https://www.kaggle.com"}
_WEIGHTS = ("model.weights.h5", "model.weights.json", "*.safetensors")


def kaggle_cache() -> Path:
    """Return the folder in which KerasHub stores the presets that it downloads."""
    cache = os.environ.get("KAGGLEHUB_CACHE") or Path.home() / ".cache" / "kagglehub"
    return Path(cache) / "models"


def hugging_face_cache() -> Path:
    """Return the folder in which models of Hugging Face are stored."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")


def is_preset(backbone) -> bool:
    """Return whether `backbone` means a preset: a name of the table, an address, or a folder."""
    if not isinstance(backbone, (str, os.PathLike)):
        return False
    name = str(backbone)
    return name in PRESETS or _scheme(name) is not None or _is_folder(name)


def _scheme(name):
    scheme, found, _ = name.partition("://")
    return scheme if found and scheme in _SCHEMES else None


def _is_folder(name):
    folder = Path(name)
    return (folder / "config.json").is_file() and not (folder / "model.keras").exists()


def check_preset(name: str) -> None:
    """Check what can be checked about a preset before Keras is imported.

    Args:
        name: see `is_preset`.

    Raises:
        InputError: KerasHub is not installed; the preset is of another family, incomplete, or neither
            on this machine nor reachable.
    """
    require("keras_hub", f"The backbone '{name}'")
    if _is_folder(name):
        family_of_folder(Path(name))
        if not any(next(Path(name).glob(pattern), None) for pattern in _WEIGHTS):
            raise InputError(
                f"{name} has a config.json but no weights that KerasHub reads: put "
                f"{' or '.join(_WEIGHTS)} beside it."
            )
    _check_reachable(name)


def kind_of_preset(name: str) -> str | None:
    """Return what a preset reads, one of `KINDS`; None if its `config.json` is not here."""
    if name in PRESETS:
        return PRESETS[name].kind
    return FAMILIES[family_of_folder(Path(name))].kind if _is_folder(name) else None


def family_of_folder(folder: Path) -> str:
    """Return the key of `FAMILIES` for a local preset of KerasHub, or a Hugging Face folder.

    Raises:
        InputError: its `config.json` is not that of a supported family.
    """
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text("utf-8"))
    except ValueError:
        raise InputError(f"{file} is not JSON: copy the preset again.") from None
    config = config if isinstance(config, dict) else {}
    name, model_type = config.get("class_name"), config.get("model_type")
    for family, row in FAMILIES.items():
        if family == name or (model_type is not None and model_type in row.model_types):
            return family
    known = sorted({kind for row in FAMILIES.values() for kind in row.model_types})
    raise InputError(
        f"{file} describes {name or model_type or 'something'}, which is not a supported family: "
        f"choose a preset of {', '.join(FAMILIES)}, or a Hugging Face folder of {', '.join(known)}."
    )


def _check_reachable(name):
    """Raise InputError if a preset must be downloaded and its host does not answer."""
    scheme = "kaggle" if name in PRESETS else _scheme(name)
    if scheme is None or _is_present(name):
        return
    try:
        urllib.request.urlopen(urllib.request.Request(_SCHEMES[scheme], method="HEAD"), timeout=5)
    except urllib.error.HTTPError:
        return  # the host answered
    except OSError as error:
        raise not_available(name, getattr(error, "reason", error)) from None


def _is_present(name):
    if name in PRESETS:
        return PRESETS[name].folder is not None
    return next(where_stored(name).glob("**/config.json"), None) is not None


def where_stored(name: str) -> Path:
    """Return the folder where a downloaded preset is stored."""
    if name in PRESETS:
        return kaggle_cache() / "keras" / PRESETS[name].collection / "keras" / name
    address = name.partition("://")[2]
    if _scheme(name) == "hf":
        return hugging_face_cache() / f"models--{address.replace('/', '--')}"
    return kaggle_cache() / address


def not_available(name: str, reason) -> InputError:
    """Return the error of a preset that is neither on this machine nor downloadable."""
    return InputError(
        f"The preset '{name}' is not on this machine ({where_stored(name)} is empty), and the "
        f"download failed ({reason}). Copy that folder from a machine that has it, or pass the path "
        "of a local preset or Hugging Face folder as the backbone."
    )
