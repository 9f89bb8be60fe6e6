"""Evaluation of a trained model or a folder of generated videos: what `python -m medsora.evaluate` is made of."""
