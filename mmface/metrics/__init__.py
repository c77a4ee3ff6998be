"""Numbers from pictures, answers and features, with confidence intervals.

A file declares its metrics with `mmface.metrics.metric.register`; a table asks for them by name
with `build_metrics`.
"""
