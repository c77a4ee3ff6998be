"""Measuring methods: who made which pictures, by which protocol, beside which published table.

`TableEvaluation` (`table_evaluation.py`) runs a table from one command; `methods.py` and
`controls.py` make its rows, `reports.py` and `figures.py` write it. The numbers are in `metrics`.
"""
