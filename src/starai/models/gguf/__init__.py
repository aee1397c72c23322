"""GGUF, llama.cpp's file format: weights, settings and tokenizer in one file; read and written."""
