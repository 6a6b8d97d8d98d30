"""What is specific to one kind of example: how it is checked, decoded, prepared and augmented.

There is one package per modality, so far only `image`. Modules here may import only `utils` and
`errors`.
"""
