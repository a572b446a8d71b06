import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny

from mobilenets_jax.state import init_state


def make(seed=0, resolution=32):
    model = tiny.small_model(tiny.config(), 10)
    optimizer = optax.sgd(0.1, momentum=0.9)
    key = jax.random.key(seed)
    return model, optimizer, init_state(model, optimizer, resolution, key)


def test_a_new_state_is_the_models_at_step_0():
    model, optimizer, state = make()
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert state.step.dtype == jnp.int32
    assert int(state.step) == 0
    tiny.assert_same_bits(tiny.named(state.params), tiny.named(variables["params"]))
    tiny.assert_same_bits(tiny.named(state.batch_stats), tiny.named(variables["batch_stats"]))
    tiny.assert_same_bits(tiny.named(state.opt_state), tiny.named(optimizer.init(state.params)))
    # Weights do not depend on the resolution.
    tiny.assert_same_bits(tiny.named(make(resolution=8)[2]), tiny.named(state))


def test_the_averages_start_at_the_weights_in_memory_of_their_own():
    state = make()[2]
    tiny.assert_same_bits(tiny.named(state.ema_params), tiny.named(state.params))
    tiny.assert_same_bits(tiny.named(state.ema_batch_stats), tiny.named(state.batch_stats))
    # A buffer that is in the state twice could not be donated.
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)


def test_the_key_decides_the_kernels_and_nothing_else():
    first, second = tiny.named(make(seed=0)[2]), tiny.named(make(seed=1)[2])
    differing = {name for name in first if not np.array_equal(first[name], second[name])}
    kernels = {
        name for name in first if name.endswith("['kernel']") and not name.startswith(".opt_state")
    }
    assert kernels
    assert differing == kernels
