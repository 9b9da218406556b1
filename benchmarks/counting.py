"""What a traced program computes, counted."""

import math

from jax.extend.core import Jaxpr, jaxprs_in_params


def multiply_adds(jaxpr: Jaxpr, matrices_alone: bool = False) -> int:
    """Of all matrix products and convolutions of a traced program (jax.make_jaxpr).

    The body of a scan counts as often as it runs, that of a while loop once; zeros that a
    convolution puts between pixels are no work. matrices_alone: leaves out products of
    arrays with more than two axes, which in a network without attention up-sample maps.
    """
    total = 0
    for eqn in jaxpr.eqns:
        shapes = [v.aval.shape for v in (*eqn.invars, *eqn.outvars)]
        if eqn.primitive.name == "dot_general":
            if matrices_alone and {len(shapes[0]), len(shapes[1])} != {2}:
                continue
            (contracted, _), _ = eqn.params["dimension_numbers"]
            inner = [shapes[0][i] for i in contracted]
            total += math.prod(shapes[2]) * math.prod(inner)
        elif eqn.primitive.name == "conv_general_dilated":
            spec = eqn.params["dimension_numbers"].rhs_spec
            each = math.prod(shapes[1][i] for i in spec[1:])
            zeros = math.prod(eqn.params["lhs_dilation"])
            total += math.prod(shapes[2]) * each // zeros
        times = eqn.params.get("length", 1)  # of a scan
        for inner in jaxprs_in_params(eqn.params):
            total += times * multiply_adds(inner, matrices_alone)
    return total
