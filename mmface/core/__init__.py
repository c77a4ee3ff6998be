"""What every room stands on: files, digests, resumable work, checks, processes and sources.

Nothing here knows of faces, models or pictures. Start with `files.written_aside`, the one way to
write a file, and `sources`, which finds what a name, a folder or a hub id means.
"""
