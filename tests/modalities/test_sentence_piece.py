"""Encoders whose tokenizer is SentencePiece, from a preset of KerasHub to exports."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import raises, write_words

keras_hub = pytest.importorskip("keras_hub", reason="keras-hub is not installed")
sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
tf = pytest.importorskip("tensorflow")
pytest.importorskip("tensorflow_text", reason="tensorflow-text is not installed")

from keras_transfer.data import from_directory  # noqa: E402
from keras_transfer.export import convert, saved_model  # noqa: E402
from keras_transfer.export.page import check_page  # noqa: E402
from keras_transfer.modalities import find_modality  # noqa: E402
from keras_transfer.modalities.text.check import pair_of  # noqa: E402
from keras_transfer.modalities.text.description import describe  # noqa: E402
from keras_transfer.modalities.text.framing import TextFraming  # noqa: E402
from keras_transfer.modalities.text.notes import notes  # noqa: E402
from keras_transfer.modalities.text.tokens import token_ids, tokenized  # noqa: E402
from keras_transfer.models.builders import build_model, head_for  # noqa: E402
from keras_transfer.models.framing import framing_of  # noqa: E402
from keras_transfer.models.heads import Classification  # noqa: E402
from keras_transfer.models.sources.own import load_model  # noqa: E402
from keras_transfer.training.trainer import Trainer  # noqa: E402

SENTENCES = (
    "the red room has a door and the green room has none",
    "das grüne Zimmer hat eine Tür, das rote hat keine",
    "в красной комнате есть дверь, а в синей комнате нет",
    "la chambre bleue n'a pas de porte, la rouge en a une",
)
TEXTS = [
    *SENTENCES,
    "The  RED\troom … ﬁne №1",  # which its normalization changes
    "😀 unknown 語",
    "a" * 300,
    "",
]
FAMILIES = {
    # Ids of fairseq: the file's, shifted by one; two ends between the texts of a pair.
    "XLMRoberta": dict(unk_id=0, bos_id=1, eos_id=2),
    "DebertaV3": dict(
        **dict(pad_id=0, bos_id=1, eos_id=2, unk_id=3),
        **dict(pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]", unk_piece="[UNK]"),
    ),
}


def pieces(**options) -> bytes:
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 50),
        model_writer=buffer,
        minloglevel=2,
        **{"vocab_size": 56, **options},
    )
    return buffer.getvalue()


@pytest.fixture(scope="module", params=FAMILIES)
def preset(request, tmp_path_factory):
    """(folder of a preset, what its tokenizer answers by the package sentencepiece, pairs as well)."""
    folder, name = tmp_path_factory.mktemp(request.param) / "preset", request.param
    proto = pieces(**FAMILIES[name])
    tokenizer = getattr(keras_hub.models, f"{name}Tokenizer")(proto=proto)
    network = getattr(keras_hub.models, f"{name}Backbone")(
        vocabulary_size=tokenizer.vocabulary_size(),
        **dict(num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=24),
        max_sequence_length=40,
    )
    network.save_to_preset(str(folder))
    tokenizer.save_to_preset(str(folder))
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto)

    def ids(text, *second):
        found = [processor.encode(part) for part in (text, *second)]
        if name == "DebertaV3":
            return [1, *found[0], 2, *(i for part in found[1:] for i in (*part, 2))]
        found = [[3 if i == 0 else i + 1 for i in part] for part in found]
        return [0, *found[0], 2, *(i for part in found[1:] for i in (2, *part, 2))]

    return folder, ids


def framing_for(folder):
    return framing_of(build_model(str(folder), Classification("ab")))


def test_token_ids_are_those_of_the_package(preset):
    folder, ids = preset
    framing = framing_for(folder)
    assert framing.size == 40 and framing.required.kind == "SentencePiece"
    assert str(framing).startswith("SentencePiece, 5")
    long = TextFraming(1000, framing.tokenizer)
    assert tokenized(tf.constant(TEXTS), long).to_list() == [ids(text) for text in TEXTS]
    pairs = list(zip(SENTENCES, reversed(SENTENCES)))
    found = tokenized(tf.constant([pair_of(*pair) for pair in pairs]), long).to_list()
    assert found == [ids(*pair) for pair in pairs]
    # Of a pair that is too long, both texts are cut, and all special tokens stay.
    (cut,) = tokenized(tf.constant([pair_of(*pairs[0])]), TextFraming(12, long.tokenizer)).to_list()
    end = ids("")[-1]
    assert len(cut) == 12 and cut[0] == ids("")[0] and cut[-1] == end
    assert cut.count(end) == ids("", "").count(end)


def test_the_framing_is_plain_data(preset):
    framing = framing_for(preset[0])
    again = TextFraming.from_dict(json.loads(json.dumps(framing.to_dict())))
    assert again == framing
    recorded = framing.recorded()
    assert len(json.dumps(recorded)) < 500
    assert TextFraming.from_dict(recorded) == TextFraming(40)  # open


@pytest.mark.parametrize(
    "other", [{"model_type": "bpe"}, {"byte_fallback": True, "vocab_size": 300}], ids=str
)
def test_a_file_of_another_kind_is_left_open(tmp_path, other):
    """Merges, and bytes of unknown letters, need another algorithm than the one that fits into a graph."""
    proto = pieces(**FAMILIES["XLMRoberta"], **other)
    tokenizer = keras_hub.models.XLMRobertaTokenizer(proto=proto)
    network = keras_hub.models.XLMRobertaBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        **dict(num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=24),
    )
    network.save_to_preset(str(tmp_path))
    tokenizer.save_to_preset(str(tmp_path))
    with raises("The model's tokenizer is unknown"):
        framing_for(tmp_path).required  # noqa: B018


WITHOUT_KERAS = """
import glob, importlib.util, os, sys
sys.modules["keras"] = sys.modules["keras_hub"] = sys.modules["keras_transfer"] = None
import tensorflow as tf
package = os.path.dirname(importlib.util.find_spec("tensorflow_text").origin)
for library in glob.glob(os.path.join(package, "**", "_*.so"), recursive=True):
    tf.load_op_library(library)
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
found = serve(texts=tf.constant([b"in the red room", b"the blue room", b"\\xff"]))
print([label.decode() for label in found["label"].numpy()[:2]], found["error"].numpy()[2])
"""


def test_from_words_to_exports(preset, tmp_path):
    folder, ids = preset
    data = from_directory(write_words(tmp_path / "words"), progress=False)
    model = build_model(str(folder), head_for(data))
    run = Trainer(model, "lp_ft", epochs=2, batch_size=8, augment="light").fit(
        data, tmp_path / "run"
    )
    copy = load_model(run.path / "model.keras")
    texts = ["in the red room", "the blue room"]
    inputs = token_ids(tf.constant(texts), framing_of(copy)).numpy()
    assert list(inputs[0, : len(ids(texts[0]))]) == ids(texts[0])
    labels = [data.class_names[i] for i in np.argmax(copy(inputs), axis=1)]
    saved_model(run.model, tmp_path / "1")
    process = [sys.executable, "-c", WITHOUT_KERAS, str(tmp_path / "1")]
    done = subprocess.run(process, capture_output=True, text=True)
    assert done.stdout.strip() == f"{labels} b'is not UTF-8'", done.stderr
    convert(run.model, tmp_path / "litert", "litert")
    described = json.loads((tmp_path / "litert" / "tokenizer.json").read_text(encoding="utf-8"))
    assert described["type"] == "SentencePiece"
    code = describe(framing_of(copy)).split("```python\n")[1].split("```")[0]
    names = {"texts": texts}
    exec(code.replace("'sentencepiece.model'", f"r'{tmp_path}/litert/sentencepiece.model'"), names)
    np.testing.assert_array_equal(names["ids"], inputs)


def test_what_has_no_such_tokenizer_says_so_before_the_export(preset):
    framing = framing_for(preset[0])
    with raises("A web page has no SentencePiece tokenizer"):
        check_page(find_modality("text"), framing)
    if framing.tokenizer.ends > 1:  # <s> a </s></s> b </s>
        with raises("Texts need at least 4 tokens, not 3"):
            framing.at(3)


def test_scripts_that_the_vocabulary_lacks_are_named(preset):
    framing = framing_for(preset[0])
    texts = ["مرحبا بالعالم"] * 3 + ["комнате"] * 3

    class Reader:
        def decoded(self, row):
            return texts[row]

    first, *_ = notes(Reader(), framing, np.full(6, 4))
    assert "50 % of the texts are in Arabic letters" in first
    assert "only 0 such words" in first
