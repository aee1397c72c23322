"""Linear layers whose weights are kept as floats, int8 or int4, and models refitted with them."""
