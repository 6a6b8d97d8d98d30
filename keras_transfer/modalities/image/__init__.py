"""Images: check and decode files, augment them, and turn them into model inputs.

`decode` and `augment` are imported without TensorFlow; `prepare` and `serving` contain TensorFlow graph
functions.
"""
