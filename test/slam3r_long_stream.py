# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Runs 600 frames through tiny networks and prints what some cost; a process of its own, for its memory's sake."""

import json
import sys
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import slam3r_ros
from slam3r_ros.engines.slam3r.config import NetworkConfig
from slam3r_ros.engines.slam3r.networks import Image2Points, Local2World
from slam3r_ros.engines.slam3r.online import OnlinePipeline
from slam3r_ros.engines.slam3r.scene import Scene
from slam3r_ros.engines.slam3r.settings import Settings

TINY = NetworkConfig(32, 1, 2, 32, 3, 2)
FRAMES, COUNTED = 600, (200, 588)  # of them, the first of those that are counted
NUMBER = 12  # of those each time: every third is a keyframe
ROOT = str(Path(slam3r_ros.__file__).parent)


def steps_of(function):
    """Return how many lines of this package a call runs, those of a loop each time."""
    steps = 0

    def trace(frame, event, argument):
        nonlocal steps
        if not frame.f_code.co_filename.startswith(ROOT):
            return None
        steps += 1
        return trace

    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(None)
    return steps


if __name__ == '__main__':
    torch.set_num_threads(1)
    torch.manual_seed(1)
    networks = Image2Points(TINY).eval(), Local2World(TINY).eval()
    pipeline = OnlinePipeline(Scene(*networks, 1.5), Settings(buffer_size=12, scene_frames=4))
    stream = torch.rand(50, 3, 32, 32) * 2 - 1
    costs = {first: {'steps': 0, 'operations': 0, 'pages': 0} for first in COUNTED}
    for number in range(FRAMES):
        image, cost = stream[number % 50], next((costs[i] for i in COUNTED if i <= number < i + NUMBER), None)
        if cost is None:
            pipeline.process(image)
            continue
        with FlopCounterMode(display=False) as counter:
            cost['steps'] += steps_of(lambda image=image: pipeline.process(image))
        cost['operations'] += counter.get_total_flops()
        cost['pages'] = int(Path('/proc/self/statm').read_text().split()[1])
    print(json.dumps({'costs': [*costs.values()], 'views': len(pipeline.scene.views)}))
