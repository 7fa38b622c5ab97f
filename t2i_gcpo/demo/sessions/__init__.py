"""What the demo's tabs do, without a page: blind votes, inspections and live training runs.

Nothing here imports Gradio.
"""
