"""Texts: check and decode files, and turn texts into token ids.

`check`, `augment` and `framing` are imported without TensorFlow; `tokens` contains TensorFlow graph
functions, which need tensorflow-text.
"""
