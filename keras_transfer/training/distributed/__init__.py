"""Training on several devices and several machines: `docs/distributed.md` is the design.

    workers = keras_transfer.start_workers("multi_worker")   # first of all, in every process
    with workers.scope():
        model = keras_transfer.build_model(...)
    keras_transfer.Trainer(model, ..., distribute=workers).fit(data, out)

`environment` reads where the others are, `sharding` says who computes what, `tensorflow_workers` and
`jax_workers` are the engines behind one interface (`workers.Workers`), `fit_repairs` mends Keras's `fit`.
"""
