"""Planning works out what a run needs before it starts: memory by part, FLOPs, bytes and the least time on a card.

At home here is arithmetic over a model's configuration and a run's options, and the counting of a pass on the meta
device. Nothing here loads a weight, draws an image or measures a machine.
"""
