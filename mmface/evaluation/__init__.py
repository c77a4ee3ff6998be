"""Measuring what a model makes: parsed masks, colours read back, edges against sketches."""
