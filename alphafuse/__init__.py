"""alphafuse: how much should each modality weigh when frozen video and audio transformers are fused late?"""

__version__ = "0.1.0"
