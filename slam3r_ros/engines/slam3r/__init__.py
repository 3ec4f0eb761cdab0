# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""SLAM3R (Liu et al., CVPR 2025): dense reconstruction by two networks, without a camera model or a bundle adjustment.

To read it from the bottom up:

- the networks: `config`, `layers`, `decoder`, `head`, `networks`;
- their number formats and layouts: `precision`;
- what is done with them: `preprocess`, `pointmaps`, `buffer`, `candidates`, `scene`, `settings`, and the pipelines
  `online`, `offline`;
- their weights: `weights`, `checkpoints`, `download`, and `models`, which has them read, freed, and read again;
- what the rest of the program sees: `cameras`, `incoming`, `engine`.
"""
