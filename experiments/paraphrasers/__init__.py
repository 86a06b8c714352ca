"""Ways to get paraphrases of an instruction."""
