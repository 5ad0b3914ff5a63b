"""Evaluation of an encoder: kNN accuracy and figures."""
