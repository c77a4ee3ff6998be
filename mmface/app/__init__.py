"""The web page: paint a mask or a sketch, write a prompt, and see the faces come."""
