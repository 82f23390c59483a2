"""LLM engines behind one small protocol."""
