"""Eight fake CPU devices for every test, and absl flags that Grain's workers may read."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from absl import flags

flags.FLAGS.mark_as_parsed()
