"""edge_cl: an on-device incremental learner."""

import os

# From 1.29 on onnxruntime's Linux builds send usage data to their maker, from a thread of their own, unless this is
# set before it is first imported. What a device learns from is nobody else's; who wants to send it sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
