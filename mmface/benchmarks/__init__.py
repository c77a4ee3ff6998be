"""Speed, memory and exactness of the model beside a plain reference of it, in the same run.

`suite.py` is the entry point. Nothing that is measured imports this room.
"""
