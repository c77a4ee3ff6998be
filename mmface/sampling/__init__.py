"""From noise to a face: the pipeline and its mathematics.

`MMFacePipeline` (`pipeline.py`) is the entry point; `guidance.py` says what a step computes and how
predictions add up. Command lines, files of requests and the provenance of pictures are in
`generation`.
"""
