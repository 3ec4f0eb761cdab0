# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Runs 2 000 frames through tiny networks and prints what each cost; a process of its own, for its memory's sake."""

import json
import time
from pathlib import Path

import torch

from slam3r_ros.engines.slam3r.config import NetworkConfig
from slam3r_ros.engines.slam3r.networks import Image2Points, Local2World
from slam3r_ros.engines.slam3r.online import OnlinePipeline
from slam3r_ros.engines.slam3r.scene import Scene
from slam3r_ros.engines.slam3r.settings import Settings

TINY = NetworkConfig(32, 1, 2, 32, 3, 2)
FRAMES = 2000

if __name__ == '__main__':
    torch.set_num_threads(1)
    torch.manual_seed(1)
    networks = Image2Points(TINY).eval(), Local2World(TINY).eval()
    pipeline = OnlinePipeline(Scene(*networks, 1.5), Settings(buffer_size=12, scene_frames=4))
    stream = torch.rand(50, 3, 32, 32) * 2 - 1
    seconds, pages = [], []
    for number in range(FRAMES):
        start = time.process_time()  # not the clock's: other programs come and go
        pipeline.process(stream[number % 50])
        seconds.append(time.process_time() - start)
        pages.append(int(Path('/proc/self/statm').read_text().split()[1]))
    print(json.dumps({'seconds': seconds, 'pages': pages, 'views': len(pipeline.scene.views)}))
