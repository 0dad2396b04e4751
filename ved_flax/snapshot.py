"""What a module is made of, so that it need not be walked through as long as it stays so."""

from flax import nnx, traverse_util

from ved_flax.compiled import Params


class Snapshot:
    """A module's parts and variables. Walking through a model of 500 parameters takes longer than encoding an image on
    a TPU; looking whether any of its attributes is another object than before, a small part of that."""

    def __init__(self, module: nnx.Module) -> None:
        self._own = vars(module)
        parts = [vars(part) for _, part in nnx.iter_modules(module)]
        self._parts = [(attributes, tuple(attributes), tuple(attributes.values())) for attributes in parts]
        self._variables = nnx.to_flat_state(nnx.state(module))

    def holds(self, module: nnx.Module) -> bool:
        """Whether it is of this module, and each part has the attributes it had. Variables may have other values."""
        if vars(module) is not self._own:
            return False
        for attributes, names, values in self._parts:
            if len(attributes) != len(values) or tuple(attributes) != names:
                return False
            for now, before in zip(attributes.values(), values, strict=True):
                if now is not before:
                    return False
        return True

    def parameters(self) -> Params:
        """The variables' values as they are now: `ved_flax.compiled.parameters`."""
        return traverse_util.unflatten_dict({path: variable.get_value() for path, variable in self._variables})
