"""What needs no training: exact answers from embeddings.

neighbours   the reference clips most like a clip, and the vote of their labels
"""
