"""Audio clips: files of many kinds, the front end in all its forms, augmentation, and bad input."""

import io
import resource

import numpy as np
import pytest
from conftest import raises

soundfile = pytest.importorskip("soundfile", reason="the extra audio is not installed")
pytest.importorskip("soxr", reason="the extra audio is not installed")

import tensorflow as tf  # noqa: E402

from keras_transfer.data import check_data, from_arrays, from_directory  # noqa: E402
from keras_transfer.data.arrays import Arrays, Contents  # noqa: E402
from keras_transfer.data.batches import batches  # noqa: E402
from keras_transfer.modalities.audio import decode, serving  # noqa: E402
from keras_transfer.modalities.audio.augment import PRESETS, resolve_augmentation  # noqa: E402
from keras_transfer.modalities.audio.framing import ClipFraming, choose_framing  # noqa: E402
from keras_transfer.modalities.audio.layer import LogMel  # noqa: E402
from keras_transfer.modalities.audio.log_mel import image_of  # noqa: E402
from keras_transfer.modalities.audio.modality import MODALITY  # noqa: E402
from keras_transfer.modalities.audio.preparation import Preparation, window_of  # noqa: E402
from keras_transfer.modalities.views import View  # noqa: E402
from keras_transfer.models.builders import build_model, head_for  # noqa: E402

RATE, FRAMING = 8000, ClipFraming(32, 8000, 0.5)
WAV = ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"]
OTHERS = ["ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "GSM610"]


def tone(hertz, seconds=0.4, rate=RATE, loud=0.3, seed=0):
    noise = np.random.default_rng(seed).normal(0, 0.003, round(seconds * rate))
    return (loud * np.sin(2 * np.pi * hertz * np.arange(len(noise)) / rate) + noise).astype("f4")


def encoded(samples, rate=RATE, subtype="PCM_16", kind="WAV"):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, subtype, format=kind)
    return buffer.getvalue()


def write_clips(folder, counts, suffix="wav"):
    """folder/<class>/<speaker>_<i>.wav: classes differ in pitch."""
    for n, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            clip = tone(300 * 2**n, 0.3 + 0.02 * (i % 5), seed=10 * n + i)
            (folder / name / f"{'abc'[i % 3]}_{i}.{suffix}").write_bytes(encoded(clip))
    return folder


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("subtype", WAV)
def test_the_graph_decodes_wav_like_libsndfile(subtype, channels):
    samples = np.random.default_rng(0).uniform(-0.9, 0.9, (500, channels))
    contents = encoded(samples, 11025, subtype)
    expected, rate = decode.decode(contents)
    found, found_rate = serving.decode_wav(tf.constant(contents))
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert int(found_rate) == rate == 11025


@pytest.mark.parametrize("subtype", [*WAV, *OTHERS])
def test_files_of_many_kinds_are_read(subtype):
    facts = MODALITY.examine(encoded(tone(440), subtype=subtype))
    assert facts.fault is None and facts.rate == RATE and facts.format == f"WAV {subtype}"
    if subtype in OTHERS:
        with pytest.raises(tf.errors.InvalidArgumentError):
            serving.decode_wav(tf.constant(encoded(tone(440), subtype=subtype)))


def test_thirty_kinds_of_wav_are_read_and_served_alike_or_refused():
    served = tf.function(serving.decode_wav, input_signature=[tf.TensorSpec([], tf.string)])
    read = refused = 0
    for kind in ("WAV", "WAVEX", "RF64"):
        for subtype in soundfile.available_subtypes(kind):
            for channels, rate in ((1, 8000), (2, 8000), (2, 44100)):
                samples = np.stack([tone(440, 0.1, rate)] * channels, axis=1)
                try:
                    contents = encoded(samples, rate, subtype, kind)
                except RuntimeError:  # GSM 6.10 has one channel
                    continue
                facts = MODALITY.examine(contents)
                assert facts.fault is None, (kind, subtype, facts)
                assert (facts.rate, facts.channels) == (rate, channels)
                read += 1
                try:
                    found, found_rate = served(contents)
                except tf.errors.InvalidArgumentError:
                    refused += 1
                    continue
                assert found_rate == rate
                np.testing.assert_allclose(found, decode.decode(contents)[0], atol=1e-6)
    assert read >= 30 and 0 < refused < read / 2 + 10


@pytest.mark.parametrize(
    ("kind", "subtype"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")]
)
def test_compressed_files_are_read(kind, subtype):
    facts = MODALITY.examine(encoded(tone(440), 16000, subtype, kind))
    assert facts.fault is None and facts.rate == 16000 and facts.peak > 100


def test_faults_and_flaws():
    good = encoded(tone(440))
    misstated = good[:40] + b"\xff\xff\xff\x7f" + good[44:]
    assert MODALITY.examine(misstated).fault is None  # what is there is read, in the graph too
    expected, _ = decode.decode(good)
    np.testing.assert_array_equal(serving.decode_wav(tf.constant(misstated))[0], expected)
    for wrong in (b"", b"RIFF", good[:30], b"\0" * 500, good[:44]):
        assert MODALITY.examine(wrong).fault
    nothing = encoded(np.array([np.nan, 1], "f4"), subtype="FLOAT")
    assert "not finite" in MODALITY.examine(nothing).fault
    long = encoded(np.zeros(1000 * 601, "f4"), 1000, "PCM_U8")
    assert MODALITY.examine(long).fault.startswith("too long: 10 minutes, the limit is 10")
    hour = encoded(np.zeros(1000 * 3600, "f4"), 1000, "PCM_U8")
    assert "60 minutes, the limit is 10; cut it into clips" in MODALITY.examine(hour).fault
    for rate in (0, 500_000):
        stated = good[:24] + rate.to_bytes(4, "little") + good[28:]
        assert MODALITY.examine(stated).fault
        with pytest.raises(tf.errors.InvalidArgumentError):
            serving.decode_wav(tf.constant(stated))
    assert MODALITY.examine(encoded(np.zeros(100))).flaw == "silent"
    assert MODALITY.examine(good).flaw is None


def test_fuzzed_bytes_are_answered_or_refused():
    rng, good = np.random.default_rng(0), encoded(tone(440, 0.05))
    decoded = tf.function(serving.decode_wav, input_signature=[tf.TensorSpec([], tf.string)])
    refused = 0
    for _ in range(150):
        fuzzed = bytearray(good)
        for place in rng.integers(0, 60, rng.integers(1, 6)):
            fuzzed[place] = rng.integers(0, 256)
        assert MODALITY.examine(bytes(fuzzed)).fault != ""
        try:
            samples, _ = decoded(bytes(fuzzed))
            assert np.isfinite(samples).all()
        except tf.errors.InvalidArgumentError:
            refused += 1
    assert 20 < refused < 150


def test_broken_files_need_no_memory():
    """Without its check, the rate in the sixth bytes made the resampling of nothing take gigabytes."""
    decoded = serving.decoder(FRAMING)
    served = tf.data.Dataset.from_tensors(tf.constant([b"RIFF broken"] * 3)).unbatch()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert not list(served.map(decoded).ignore_errors())
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 200 * 1024  # KiB


# -- the front end --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "framing", [FRAMING, ClipFraming(64, 16000, 2.5), ClipFraming(32, 4000, 0.1)]
)
def test_one_front_end_in_numpy_and_as_a_layer(framing):
    windows = np.stack(
        [window_of(tone(500 * n, 0.4, framing.rate, 0.1 * n), framing) for n in (1, 2, 3)]
    )
    expected = np.stack([image_of(window, framing) for window in windows])
    assert (
        np.abs(serving.images_in_graph(windows, framing).numpy() - expected.astype(int)).max() <= 1
    )
    layer = LogMel(framing.size, framing.rate, framing.seconds)
    found = np.asarray(LogMel.from_config(layer.get_config())(windows))
    assert found.shape == (3, *framing.shape) and np.abs(found - expected).max() <= 1
    assert (found != expected).mean() < 1e-3


def test_a_clip_looks_the_same_among_louder_ones():
    quiet, loud = (window_of(tone(500, loud=x), FRAMING) for x in (0.001, 0.9))
    layer = LogMel(32, 8000, 0.5)
    alone, among = layer(quiet[None])[0], layer(np.stack([loud, quiet, loud]))[1]
    np.testing.assert_array_equal(alone, among)
    scaled = image_of(quiet * 100, FRAMING).astype(int)
    assert np.abs(scaled - image_of(quiet, FRAMING)).max() <= 1


def test_low_tones_are_at_the_bottom_and_time_runs_to_the_right():
    rows = [
        image_of(window_of(tone(f), FRAMING), FRAMING)[..., 0].sum(1).argmax() for f in (200, 3000)
    ]
    assert rows[0] > 20 > 10 > rows[1]
    early = np.concatenate([tone(1000, 0.2), np.zeros(1600, "f4")])
    columns = image_of(window_of(early, FRAMING), FRAMING)[..., 0].sum(0)
    assert columns[:12].sum() > 5 * columns[20:].sum()


def test_short_clips_lie_in_the_middle_and_long_ones_are_cut_to_it():
    short = window_of(np.ones(1000, "f4"), FRAMING)
    first = (len(short) - 1000) // 2
    assert short.sum() == 1000 and short[first] == short[first + 999] == 1 and short[first - 1] == 0
    ramp = np.arange(10000, dtype="f4")
    start = (10000 - FRAMING.samples + 1) // 2
    np.testing.assert_array_equal(window_of(ramp, FRAMING), ramp[start:][: FRAMING.samples])


@pytest.mark.parametrize("rate", [8000, 44100])
def test_a_clip_of_one_sample_is_varied(rate):
    clips = Contents([encoded(np.array([0.4]), rate)], modality=MODALITY)
    views = [View(), View("augmented", 0, PRESETS["heavy"])]
    seeds = np.ones((2, 1, 2), int)
    with np.errstate(all="raise"):
        made = Preparation(clips, views, FRAMING).batch(np.array([0]), np.zeros((2, 1, 0)), seeds)
    assert made.shape == (2, 1, 32, 32, 3)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000])
def test_the_graph_resamples_like_soxr(rate):
    clip = np.convolve(np.random.default_rng(0).normal(0, 0.1, rate), np.hanning(9) / 4, "same")
    framing = ClipFraming(64, 16000, 0.8)
    clip = clip.astype("f4")
    expected = window_of(decode.resampled(clip, rate, 16000), framing)
    found = serving.window_in_graph(tf.constant(clip), rate, framing).numpy()
    shades = [image_of(window, framing).astype(int) for window in (expected, found)]
    assert np.abs(shades[0] - shades[1]).max() <= 5


def test_the_data_choose_the_window_and_the_rate():
    seconds = np.r_[np.full(96, 0.42), np.full(4, 3.0)]
    framing, reason = choose_framing(seconds, np.r_[np.full(15, 8000), np.full(85, 44100)])
    assert (framing.seconds, framing.rate) == (0.5, 8000) and "96%" in reason
    framing, _ = choose_framing(np.array([3600.0]), np.array([44100]))
    assert (framing.seconds, framing.rate) == (10.0, 16000)
    assert framing == MODALITY.framing(framing.to_dict()).at(None)


# -- augmentation ---------------------------------------------------------------------------------


def test_networks_for_images_are_built_at_the_size_of_the_bands_by_default():
    clips = from_arrays(
        ([tone(440 + 40 * i) for i in range(10)], [0, 1] * 5), rate=RATE, class_names=("a", "b")
    )
    pixels = np.arange(10 * 192).reshape(10, 8, 8, 3).astype("uint8")
    pixels = from_arrays((pixels, [0, 1] * 5), class_names=("a", "b"))
    sizes = {}
    for data in (clips, pixels):
        for size in (None, 64):
            model = build_model(
                "mobilenet_0.25", head_for(data), image_size=size, weights=None, data=data
            )
            sizes[data.modality.name, size] = model.input_shape[1]
    assert sizes == {
        ("audio", None): 96,
        ("audio", 64): 64,
        ("image", None): 224,
        ("image", 64): 64,
    }
    audio = clips.modality
    default = audio.default_framing(clips, 96)
    assert [each.size for each in audio.larger_framings(default)] == [128, "96x192"]
    assert not audio.larger_framings(default.at(64))  # somebody chose a size


def test_variants_follow_from_the_seed_alone():
    reader = Arrays([(tone(440), RATE), (tone(880), RATE)], modality=MODALITY)
    views = [View(), View("augmented", 0, PRESETS["heavy"])]
    made = np.zeros((3, 2, *FRAMING.shape), "uint8")
    for out, seed in zip(made, (1, 1, 2)):
        seeds = np.array([[7, seed]] * 2)
        Preparation(reader, views, FRAMING).make(0, np.zeros((2, 0)), seeds, out)
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_array_equal(made[0, 0], made[2, 0])  # the plain view
    assert (made[0, 1] != made[2, 1]).mean() > 0.05 and (made[0, 0] != made[0, 1]).mean() > 0.05


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ("flip", "does not suit audio clips"),
        ({"flip": True}, "cannot be mirrored"),
        ({"hue": 0.1}, "audio clips have no hue"),
        ({"noise": 2}, "noise must be between 0 and 1"),
        ({"preset": "wild"}, "unknown preset"),
    ],
)
def test_augmentations_of_images_are_refused(wrong, part):
    with raises(part):
        resolve_augmentation(wrong)


def test_mirror_images_may_be_switched_off_because_there_are_none():
    assert resolve_augmentation({"preset": "medium", "flip": False}) == PRESETS["medium"]


# -- data -----------------------------------------------------------------------------------------


def test_folders_arrays_and_contents_make_the_same_inputs(tmp_path):
    data = from_directory(write_clips(tmp_path / "d", {"low": 6, "high": 6}), progress=False)
    train = data.examples["train"]
    assert data.modality is MODALITY and "train: " in data.describe() and "clips" in data.describe()
    clips = [train.images.decoded(i)[0] for i in range(len(train))]
    part = clips, list(train.labels)
    other = from_arrays(part, val=part, rate=RATE, progress=False)
    made = [
        np.concatenate(
            [x for x, _ in batches(e, image_size=FRAMING, batch_size=4).as_numpy_iterator()]
        )
        for e in (train, other.examples["train"])
    ]
    np.testing.assert_array_equal(*made)
    contents = Contents([train.images.contents(0)], modality=MODALITY)
    assert contents.read(0, lambda clip: (clip.rate, clip.seconds)) == (RATE, len(clips[0]) / RATE)


def test_groups_stay_together(tmp_path):
    folder = write_clips(tmp_path / "d", {"low": 9, "high": 9})
    data = from_directory(folder, progress=False, val_split=0.3, groups="([abc])_")
    speakers = [{name[-7:].split("/")[-1][0] for name in p.names} for p in data.examples.values()]
    assert not speakers[0] & speakers[1]


def test_the_check_reports_rates_lengths_and_clipping(tmp_path):
    folder = write_clips(tmp_path / "d", {"low": 3, "high": 3})
    (folder / "low" / "a_9.wav").write_bytes(encoded(np.ones(4000), 16000))
    (folder / "low" / "b_9.wav").write_bytes(b"RIFF")
    report = check_data(folder)
    assert report.to_dict()["rates"] == {8000: 6, 16000: 1}
    assert report.statistics["clipped"] == {"clips": 1} and len(report.faulty) == 1
    assert "sample rate (Hz): 8000: 6, 16000: 1" in report.text()


def test_images_among_clips(tmp_path):
    from conftest import write_image

    folder = write_clips(tmp_path / "d", {"low": 10, "high": 10})
    write_image(folder / "low" / "cover.png", (1, 2, 3))
    data = from_directory(folder, progress=False)
    assert [s.reason for s in data.skipped] == ["unsupported file type .png"]
    for i in range(5):
        write_image(folder / "low" / f"{i}.png", (1, 2, 3))
    with raises("contains 20 clips (a_0.wav, …) and 6 images"):
        from_directory(folder, progress=False)


@pytest.mark.parametrize("rate", [0, -1, 8000.5, True])
def test_an_invalid_rate(rate):
    with raises("rate must be a whole number of samples per second"):
        from_arrays(([tone(440)] * 4, [0, 1] * 2), rate=rate, progress=False)


def test_channels_come_last():
    clips = [np.stack([tone(440 + i)] * 2) for i in range(4)]
    with raises("train 0 has the shape [2, 3200], which is 2 samples of 3200 channels"):
        from_arrays((clips, [0, 1] * 2), rate=RATE, progress=False)
    data = from_arrays(([c.T for c in clips], [0, 1] * 2), rate=RATE, val_split=0.5, progress=False)
    assert len(data.examples["train"].images.decoded(0)[0]) == 3200


def test_clips_for_a_model_of_images(tmp_path):
    from keras_transfer.modalities.image.framing import Framing

    clips = Arrays([(tone(440), RATE)], modality=MODALITY)
    with raises("The model reads images, but these are clips"):
        MODALITY.framing_for(Framing(32, 1.0), clips)
