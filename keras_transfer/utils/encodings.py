"""Guess the encoding of bytes that are not UTF-8, to name it in a message."""

import codecs
import unicodedata
from collections import Counter

# Byte order marks, the longest first: that of UTF-16 begins that of UTF-32.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_FEW = 0.3  # share of bytes above 127 up to which the letters are mostly Latin
_FITS = 0.7
_SAMPLE = 4096  # bytes
# Encoding → the script of a text in it. Kanji alone are as likely Chinese.
_OTHERS = {
    "cp1251": "CYRILLIC",
    "koi8-r": "CYRILLIC",
    "cp1253": "GREEK",
    "shift_jis": "HIRAGANA",
    "euc-jp": "HIRAGANA",
    "euc-kr": "HANGUL",
    "gb18030": "CJK",
}


def fitting_encoding(raw: bytes) -> str:
    """Return the name of an encoding that fits bytes that are not UTF-8; latin-1 takes any bytes."""
    found = next((name for mark, name in MARKS.items() if raw.startswith(mark)), None)
    if found:
        return found
    if b"\0" in raw[:2]:  # UTF-16 without a mark begins with ASCII
        return "utf-16-be" if raw[:1] == b"\0" else "utf-16-le"
    sample = raw[:_SAMPLE]
    if sum(byte > 127 for byte in sample) > _FEW * len(sample.replace(b" ", b"")):
        best = max(_OTHERS, key=lambda name: _plausible(raw, name))
        if _plausible(raw, best) > _FITS:
            return best
    return "cp1252" if _decoded(raw, "cp1252") is not None else "latin-1"


def _decoded(raw, encoding):
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        return None


def _plausible(raw, encoding) -> float:
    """Return the share of letters that are usual in a text, among those that are not ASCII."""
    text = _decoded(raw, encoding)
    letters = [one for one in (text or "")[:_SAMPLE] if one > "\x7f" and one.isalpha()]
    kinds = Counter(
        "CAPITAL" if one.isupper() else unicodedata.name(one, "").partition(" ")[0]
        for one in letters
    )
    script = _OTHERS[encoding]
    usual = kinds[script]
    if script == "HIRAGANA" and usual:
        usual += kinds["KATAKANA"] + kinds["CJK"]
    return usual / max(1, len(letters))
