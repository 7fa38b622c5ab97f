"""What the demo's tabs do without a page is at home here: blind votes, inspections and live training runs.

Nothing here imports Gradio.
"""
