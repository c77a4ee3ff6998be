"""What `scripts/sample.py` and the page do around a pipeline: options, files, jobs, provenance.

`settings.py` has the options and loads nothing heavy; `sample.py` is the entry point, and
`requests.py` gets a request ready and samples it. The pipeline itself is in `sampling`.
"""
