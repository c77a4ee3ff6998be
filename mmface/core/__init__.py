"""What every room stands on: files, digests, resumable work, checks, processes and sources.

Nothing here knows of faces or of what a network computes. Start with `files.written_aside`, the
one way to write a file, and `sources`, which finds what a name, a folder or a hub id means and
loads it.
"""
