"""Servers that speak the OpenAI API: what they accept, what they answer, and what may be read from it."""
