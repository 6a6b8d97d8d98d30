"""Audio clips: check and decode files, augment them, and turn them into log-mel images.

The front end is a layer in exported models (`log_mel.LogMel`) and runs in the threads that read files in
training; both compute `log_mel.shades`. `decode`, `augment` and `framing` are imported without TensorFlow.
"""
