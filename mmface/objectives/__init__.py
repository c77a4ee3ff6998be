"""What a model is trained to predict, and how the same prediction is sampled.

`objective` trains: it draws times (`times`), adds noise and sums named loss terms (`losses`).
`solvers` samples with diffusers' schedulers, by the objective's name alone, and imports none of the
training. Networks and training loops are not here.
"""
