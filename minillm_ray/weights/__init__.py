"""From the learner's weights to the samplers', with a checksum."""
