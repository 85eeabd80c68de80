"""Descriptions of topics beyond c-TF-IDF: KeyBERT-inspired words, diverse words, words of chosen parts of speech."""
