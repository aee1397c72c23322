"""What the owner of a node says of the server that runs the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from starai.core.errors import ConfigurationRefused


class ExternalOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the external engine.

    ``url`` is the server's address, ``kind`` its kind (a name of `servers`, or ``auto``),
    ``served`` the model's name there, if it serves several, and ``context`` how many tokens it
    takes, if it does not say (0: what it says, or what the model can).
    """

    url: str
    kind: str = "auto"
    served: str = ""
    context: Annotated[float, msgspec.Meta(ge=0)] = 0

    @classmethod
    def read(cls, options: Mapping[str, float | str]) -> ExternalOptions:
        """From an `EngineSpec`'s options.

        Raises:
            ConfigurationRefused: one is unknown or of the wrong type.
        """
        try:
            return msgspec.convert(dict(options), cls)
        except msgspec.ValidationError as error:
            known = ", ".join(cls.__struct_fields__)
            raise ConfigurationRefused(
                f"options of an engine behind a URL are {known}: {error}"
            ) from error
