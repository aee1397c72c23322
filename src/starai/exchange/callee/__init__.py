"""The callee's side of an exchange: offered tasks taken once, answered, and left in order."""
