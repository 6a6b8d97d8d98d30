"""The frozen part of a network, computed once: cut, engine, store.

`prefix` says what is frozen, `engines` run it, `store` keeps what came out, `extraction` puts the
three together, `caching` decides where it pays, and `batches` feeds a training with it.
"""
