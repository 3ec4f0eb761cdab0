# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Write the subset of the vectors that the repository holds: `python test/golden/subset.py FROM test/data/golden`.

Weights are left out, as the recipe makes them; maps are thinned.
"""

import json
import sys
from pathlib import Path

import numpy as np

STEP = 4  # of the pixels of maps, on top of what was thinned already
LEFT_OUT = (
    'v2_ref1', 'v11_ref0', 'v11_ref5', 'r1_k1_src_first', 'r2_k1/', 'r3_k1_unsorted', 'r10_k1', 'r5_k5',
    'tokenpath', '640x480', '1200x680', '400x300',
)  # fmt: skip


def kept(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays that are not left out."""
    with np.load(path) as arrays:
        return {key: arrays[key] for key in arrays.files if not key.startswith(LEFT_OUT)}


def thin(source: Path, target: Path, name: str, maps: tuple[str, ...], places: list[dict]) -> None:
    """Thin some arrays of a file, and say so in the facts about them."""
    arrays = kept(source / name)
    for key in arrays:
        if key.endswith(maps):
            first = arrays[key].ndim - (3 if arrays[key].shape[-1] == 3 else 2)
            arrays[key] = arrays[key][(slice(None),) * first + (slice(None, None, STEP),) * 2]
    np.savez_compressed(target / name, **arrays)
    for facts in places:
        facts['stored_stride'] *= STEP


def main(source: Path, target: Path) -> None:
    """Write all files of the subset."""
    target.mkdir(parents=True, exist_ok=True)
    manifest, runs = (json.loads((source / name).read_text()) for name in ('manifest.json', 'e2e.json'))
    for file, kind in (('i2p_cases.npz', 'i2p/'), ('l2w_cases.npz', 'l2w/')):
        facts = [facts for case, facts in manifest['cases'].items() if case.startswith(kind)]
        thin(source, target, file, ('/pts3d', '/conf'), facts)
    thin(source, target, 'e2e.npz', ('_pcds', '_confs'), list(runs.values()))
    for name in ('intermediates', 'retrieval', 'functions', 'preprocess', 'full_size'):
        np.savez_compressed(target / f'{name}.npz', **kept(source / f'{name}.npz'))
    files = {'manifest.json': manifest, 'e2e.json': runs}
    for name in ('full_size.json', 'full_i2p_shapes.json', 'full_l2w_shapes.json'):
        files[name] = json.loads((source / name).read_text())
    for name, content in files.items():
        (target / name).write_text(json.dumps(content, separators=(',', ':')))


if __name__ == '__main__':
    main(Path(sys.argv[1]), Path(sys.argv[2]))
