"""The training run: the step, the update, rollouts, the optimiser, checkpoints and the metrics that are logged.

May import `evaluation`, `heatmap`, `generators`, `data` and what lies below them. It does not know which algorithm it
runs, and it neither parses options nor writes reports.
"""
