"""edge_cl: an on-device incremental learner."""
