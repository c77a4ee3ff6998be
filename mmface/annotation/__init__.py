"""From a photograph to its mask, its sketch and its captions, resumable and in parts.

`jobs.annotate` is the entry point. The face parser is in `encoders`; what is made is a manifest.
"""
