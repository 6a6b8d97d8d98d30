"""Images: check files, decode them to RGB pixels, resize and crop, augment.

`check` and `augment` do without TensorFlow; `decode`, `prepare` and `serving` need it.
"""
