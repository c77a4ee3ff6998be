"""What `scripts/sample.py` and the page do around a pipeline: options, files, jobs, recipes.

`settings.py` has the options, and the recipe of a picture that they are kept in, and loads nothing
heavy; `sample.py` is the entry point, and `requests.py` gets a request ready and samples it. The
pipeline itself is in `sampling`.
"""
