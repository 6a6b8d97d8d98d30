"""Training on several devices and several machines; docs/distributed.md describes the design.

`single_process` is the interface and its implementation for one process. `environment` reads the
cluster from the environment and starts `workers`, whose engines are `tensorflow_workers` and
`jax_workers`; `faults` ends a process whose workers are lost. May import what `training` may.
"""
