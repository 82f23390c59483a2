"""Measures that more than one stage makes: of texts, of two policies, of labels by confidence and length."""
