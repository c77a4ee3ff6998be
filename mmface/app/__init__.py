"""The web page: paint a mask or a sketch, write a prompt, and watch the faces appear.

`server.serve` is the entry point; `page.py` lays it out, `handlers.py` answers it, `running.py`
samples. What a request means is in `generation`.
"""
