"""The parts of the panel, one responsibility each; SaliencyExplain.py puts them together."""
