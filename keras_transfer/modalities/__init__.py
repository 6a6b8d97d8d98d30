"""Modalities: everything that is specific to a kind of example; today only images.

A modality checks, decodes, prepares and augments examples, with one definition for training and for
the exported graph. Modules here may import only `utils` and `errors`.
"""
