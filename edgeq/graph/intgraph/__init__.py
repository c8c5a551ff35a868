"""Networks of integers only: the graph, its arithmetic, the reference interpreter, lowering and the memory plan.

Everything but `lower` and `lower_ops` runs without torch.
"""
