"""Nodes for ComfyUI: load a pipeline, paint a mask, sample faces, measure how they follow it.

Link this folder into ComfyUI's `custom_nodes`, with the package installed in its Python; the nodes
then stand under "mmface", and `workflow.json` shows them together. Nothing else imports this room,
and it runs without ComfyUI, too: `nodes.py` has the four classes.
"""

from mmface.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
