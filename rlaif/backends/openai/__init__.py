"""Servers that speak the OpenAI API: what they accept, what they answer, and what can be read from it."""
