"""What training reads: manifests of faces, their pictures, stores of latents, and keyed samples.

`Manifest` and `LatentEncoding` are the entry points, `importers` read data sets as they are found.
Condition kinds are in `conditions`; `doctor` examines a data set.
"""
