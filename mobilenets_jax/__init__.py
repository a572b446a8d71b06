"""MobileNet V1, V2 and V3 in JAX/Flax, with their ablations.

`create_model` builds a network, `list_models` names them. Importing this package alone does not
import JAX: `specs`, `switches` and `costs` are usable without it.
"""

from typing import TYPE_CHECKING, Any

from mobilenets_jax.specs import list_models

if TYPE_CHECKING:
    from mobilenets_jax.model import create_model

__all__ = ["create_model", "list_models"]


def __getattr__(name: str) -> Any:
    if name == "create_model":
        from mobilenets_jax.model import create_model

        return create_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
