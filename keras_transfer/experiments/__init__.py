"""Transfer against training from scratch on the same budget: what it brings, in numbers.

`running` trains both for some sizes of the training part and some seeds, `curves` measures two
learning curves against each other, `saving` says how many images transfer saves, `result` holds
what came out and puts it into words, and `image` draws it. Only `running` needs Keras.
"""
