"""Numbers from pictures, answers and features, and how sure they are.

Nothing here knows of methods, folders or tables. A file declares its metrics with
`mmface.metrics.metric.register`; a table asks for them by name with `build_metrics`.
"""
