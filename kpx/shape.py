"""What commands print with `--json` is described where its types are: these say the same things everywhere."""

from pydantic import BaseModel, ConfigDict

SHAPE = ConfigDict(frozen=True, extra="forbid", json_schema_serialization_defaults_required=True)
"""For dataclasses that commands print, as their `__pydantic_config__`: nothing but the fields, and all of them."""


class Part(BaseModel):
    """A piece of a report."""

    model_config = SHAPE
