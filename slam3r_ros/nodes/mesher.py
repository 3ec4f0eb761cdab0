# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The node that fuses keyframes into the mesh and publishes what changes of it."""

import sys
from typing import Any

from rclpy.qos import QoSProfile
from std_srvs.srv import Trigger
from visualization_msgs.msg import MarkerArray

from slam3r_ros.meshing.chunks import ChunkChange, DisplayChunks
from slam3r_ros.meshing.cleaning import remove_small_components, weld
from slam3r_ros.meshing.export import write_mesh
from slam3r_ros.meshing.mesher import BlockMesher
from slam3r_ros.nodes.base import Newcomers, PipelineNode, run
from slam3r_ros.nodes.saving import SaveError, files_to_write
from slam3r_ros.srv import GetMesh, SaveMap
from slam3r_ros.transport.bus import create_publisher, create_subscription, outside_reader_ids
from slam3r_ros.transport.cdr import marker_array
from slam3r_ros.transport.messages import mesh_to_message
from slam3r_ros.values import Keyframe, MeshUpdate, SlamStatus

_QUEUE = 32  # keyframes
_SPECK = 50  # triangles: smaller pieces are not saved


class Mesher(PipelineNode):
    """Publishes `mesh` and, for RViz, `mesh_markers`."""

    def __init__(self, **kwargs: Any):
        """Wait for keyframes.

        Raises:
            ParameterError: A parameter makes no sense.
        """
        super().__init__('mesher', **kwargs)
        p = self.parameters
        self._scale_known = False
        self._mesher = self._make_mesher()
        self._mesh = create_publisher(self, MeshUpdate, 'mesh', frame_id=p.map_frame)
        self._markers = self.create_publisher(MarkerArray, 'mesh_markers', QoSProfile(depth=10))
        self._chunks: DisplayChunks | None = None  # what RViz shows; None while nobody looks
        self._mesh_readers, self._marker_readers = Newcomers(), Newcomers()
        self.serve(Trigger, '~/reset', self._reset)
        self.serve(SaveMap, '~/save_map', self._save)
        self.serve(GetMesh, '~/get_mesh', self._get)
        self.worker.every(1.0 / p.mesh_rate, self._publish)
        self.start_diagnostics()
        create_subscription(self, SlamStatus, 'status', self._follow, depth=10)
        create_subscription(self, Keyframe, 'keyframes', self._integrate, _QUEUE, lossless=True)

    def diagnostics(self) -> dict[str, Any]:
        """Return what the mesher counts."""
        return self._mesher.counters

    def _make_mesher(self) -> BlockMesher:
        p = self.parameters
        voxel_size = p.voxel_size if self._scale_known else p.voxel_size_relative
        blocks = BlockMesher.blocks_within(p.mesh_memory_mb)
        return BlockMesher(voxel_size, max_blocks=blocks, min_weight=p.mesh_min_weight)

    def _integrate(self, keyframe: Keyframe) -> None:
        if keyframe.map_id >= self._mesher.map_id:  # else it was on its way when the map was reset
            self._mesher.integrate(keyframe)

    def _follow(self, status: SlamStatus) -> None:
        """Begin a new map when the engine did; show the rest when it has finished."""
        if status.scale_known != self._scale_known:
            self._scale_known = status.scale_known
            sequence = self._mesher.sequence
            self._mesher = self._make_mesher()
            self._mesher.sequence = sequence
            self._mesher.reset(status.map_id)
        elif status.map_id > self._mesher.map_id:
            self._mesher.reset(status.map_id)
        if status.finished:
            self._publish()

    def _publish(self) -> None:
        """Publish what has changed, and everything to those who are new; nothing when nobody listens."""
        mesh_readers_came = self._mesh_readers.look(self._mesh.reader_ids())
        marker_readers_came = self._marker_readers.look(outside_reader_ids(self, self._markers))
        if not self._marker_readers.settled:
            self._chunks = None
            if not self._mesh_readers.settled:
                return
        update = self._mesher.update(full=mesh_readers_came)
        if update is not None:
            self._mesh.publish(update)
        if self._marker_readers.settled:
            self._publish_markers(update, marker_readers_came)

    def _publish_markers(self, update: MeshUpdate | None, joined: bool) -> None:
        changes: list[ChunkChange] = []
        if self._chunks is None:
            self._chunks = DisplayChunks(self.parameters.chunk_blocks)
            changes = self._chunks.apply(self._mesher.snapshot())
        elif update is not None:
            changes = self._chunks.apply(update)
        if joined:
            changes = [each for each in changes if each.delete] + self._chunks.shown()
        if changes:
            stamp = self.get_clock().now().nanoseconds
            self._markers.publish(marker_array(changes, 'mesh', stamp, self.parameters.map_frame))

    def _reset(self, request: Trigger.Request) -> dict[str, Any]:
        self._mesher.reset(self._mesher.map_id)
        return {'message': 'the mesh begins anew'}

    def _save(self, request: SaveMap.Request) -> dict[str, Any]:
        mesh = remove_small_components(*weld(*self._mesher.mesh()), _SPECK)
        if not len(mesh[2]):
            raise SaveError('the mesh is empty but for specks, nothing was written; map something first')
        paths = files_to_write(request, ('mesh.ply', 'mesh.glb'))
        for path in paths:
            write_mesh(path, *mesh)
        return {'files': [str(path) for path in paths]}

    def _get(self, request: GetMesh.Request) -> dict[str, Any]:
        if request.map_id and request.map_id != self._mesher.map_id:
            raise ValueError(f'map {request.map_id} is gone; the present one is {self._mesher.map_id}')
        return {'mesh': mesh_to_message(self._mesher.snapshot(), self.parameters.map_frame)}


def main(arguments: list[str] | None = None) -> int:
    """Run the node alone."""
    return run(Mesher, arguments)


if __name__ == '__main__':
    sys.exit(main())
