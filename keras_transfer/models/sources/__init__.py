"""Sources of backbones: `keras.applications` in a table, and your own models.

Names and files are checked in `applications`, which does not import Keras until it builds. Modules
here may import `models.stages`, `models.heads`, and the rooms below `models`.
"""
