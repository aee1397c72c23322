"""The weights of a model folder as plain arrays, however the folder keeps them."""
