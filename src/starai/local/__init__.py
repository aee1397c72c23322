"""A whole network on this machine: `starai up`'s processes, or all of it inside one program."""
