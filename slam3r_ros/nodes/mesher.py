# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The node that fuses keyframes into the mesh and publishes what changes of it."""

import sys
import time
from collections.abc import Callable
from typing import Any

from rclpy.qos import QoSProfile
from std_srvs.srv import Trigger
from visualization_msgs.msg import MarkerArray

from slam3r_ros.gpu_memory import cupy_gpu_memory
from slam3r_ros.meshing.backend import DeviceError
from slam3r_ros.meshing.chunks import ChunkChange, DisplayChunks
from slam3r_ros.meshing.cleaning import decimate, remove_small_components, weld
from slam3r_ros.meshing.draco import CompressedMesh, is_installed
from slam3r_ros.meshing.export import write_mesh
from slam3r_ros.meshing.figures import MeshFigures
from slam3r_ros.meshing.mesher import BlockMesher
from slam3r_ros.meshing.pace import Pace
from slam3r_ros.meshing.poisson import smooth
from slam3r_ros.meshing.stream import DracoStream
from slam3r_ros.nodes.base import Newcomers, PipelineNode
from slam3r_ros.nodes.parameters import ParameterError
from slam3r_ros.nodes.process import run
from slam3r_ros.nodes.saving import SaveError, files_to_write, saved_together
from slam3r_ros.srv import GetMesh, SaveMap
from slam3r_ros.transport.bus import create_publisher, create_subscription, outside_reader_ids
from slam3r_ros.transport.cdr import marker_array
from slam3r_ros.transport.meshes import mesh_to_message
from slam3r_ros.values import Keyframe, MeshUpdate, SlamStatus

_QUEUE = 32  # keyframes
_SPECK = 50  # triangles: smaller pieces are not saved


class Mesher(PipelineNode):
    """Publishes `mesh`, the same compressed as `mesh/draco` and, for RViz, as `mesh_markers`."""

    NAME = 'mesher'

    def offer_services(self) -> None:
        """Offer what can be asked of the mesh."""
        self.serve(Trigger, '~/reset', self._reset)
        self.serve(SaveMap, '~/save_map', self._save, long=True)
        self.serve(GetMesh, '~/get_mesh', self._get)

    def configure(self) -> None:
        """Wait for keyframes.

        Raises:
            ParameterError: The device is not here.
        """
        p = self.parameters
        self._scale_known = False
        self._mesher = self._make_mesher()
        self._pace, self._figures = Pace(p.mesh_fast_motion), MeshFigures()
        self._mesh = create_publisher(self, MeshUpdate, 'mesh', frame_id=p.map_frame)
        self._draco = create_publisher(self, CompressedMesh, f'{self._mesh.topic_name}/draco', frame_id=p.map_frame)
        self._can_compress = is_installed()
        if not self._can_compress:
            self.get_logger().warning(
                f'DracoPy is missing: nothing comes on {self._draco.topic_name}; pip install DracoPy'
            )
        self._markers = self.create_publisher(MarkerArray, 'mesh_markers', QoSProfile(depth=10))
        # What the readers of the two were told; None while there are none.
        self._stream: DracoStream | None = None
        self._chunks: DisplayChunks | None = None
        self._mesh_readers, self._draco_readers, self._marker_readers = Newcomers(), Newcomers(), Newcomers()
        self.worker.every(1.0 / p.mesh_rate, self._publish)
        create_subscription(self, SlamStatus, 'status', self._follow, depth=10)
        create_subscription(self, Keyframe, 'keyframes', self._integrate, _QUEUE, lossless=True)

    def diagnostics(self) -> dict[str, Any]:
        """Return what the mesher counts, and how fast it is."""
        ratio = 0.0 if self._stream is None else self._stream.ratio
        return self._mesher.counters | self._figures.values(time.monotonic()) | {
            'compression_ratio': round(ratio, 1),
            'camera_speed': round(self._pace.speed, 3),
            'device': self._mesher.device,
            'gpu_memory [bytes]': cupy_gpu_memory(),
        }

    def _make_mesher(self) -> BlockMesher:
        p = self.parameters
        blocks = BlockMesher.blocks_within(p.mesh_memory_mb)
        try:
            return BlockMesher(
                self._voxel_size(), max_blocks=blocks, min_weight=p.mesh_min_weight, device=p.mesh_device
            )
        except DeviceError as error:
            raise ParameterError(f'parameter mesh_device of {self.get_fully_qualified_name()}: {error}') from None

    def _voxel_size(self) -> float:
        return self.parameters.voxel_size if self._scale_known else self.parameters.voxel_size_relative

    def _integrate(self, keyframe: Keyframe) -> None:
        if keyframe.map_id >= self._mesher.map_id:  # else it was on its way when the map was reset
            self._pace.see(keyframe)
            self._mesher.integrate(keyframe)
            if keyframe.pointmap is not None:
                self._figures.keyframe_came(time.monotonic())

    def _follow(self, status: SlamStatus) -> None:
        """Begin a new map when the engine did; show the rest when it has finished."""
        if status.scale_known != self._scale_known:
            self._scale_known = status.scale_known
            self._mesher.reset(status.map_id, self._voxel_size())
        elif status.map_id > self._mesher.map_id:
            self._mesher.reset(status.map_id)
        if status.finished:
            self._publish(final=True)

    def _publish(self, final: bool = False) -> None:
        """Publish what has changed, and everything to those who are new; nothing when nobody listens.

        Args:
            final: However fast the camera was.
        """
        mesh_came = self._mesh_readers.look(self._mesh.reader_ids())
        draco_came = self._draco_readers.look(self._draco.reader_ids() if self._can_compress else set())
        markers_came = self._marker_readers.look(outside_reader_ids(self, self._markers))
        if not self._draco_readers.settled:
            self._stream = None
        if not self._marker_readers.settled:
            self._chunks = None
        if not (self._mesh_readers.settled or self._draco_readers.settled or self._marker_readers.settled):
            self._figures.nothing_to_show()
            return
        first = not self._mesher.sequence  # even of nothing, so that a map that begins later is known for another
        due = self._pace.due() or final or first
        update = self._mesher.update(full=first) if due else None
        whole = update
        if (mesh_came or draco_came or markers_came) and not (update and update.full):
            whole = self._mesher.snapshot()
        if self._mesh_readers.settled and (told := whole if mesh_came else update):
            self._mesh.publish(told)
        if self._marker_readers.settled:
            self._publish_markers(whole if self._chunks is None else update, markers_came)
        if self._draco_readers.settled:
            self._publish_draco(whole if draco_came else update)
        if update is not None:
            self._figures.published(time.monotonic())
        elif due:
            self._figures.nothing_to_show()

    def _publish_markers(self, update: MeshUpdate | None, joined: bool) -> None:
        if self._chunks is None:
            self._chunks = DisplayChunks(self.parameters.chunk_blocks)
        changes: list[ChunkChange] = self._chunks.apply(update) if update is not None else []
        if joined:
            changes = [each for each in changes if each.delete] + self._chunks.shown()
        if changes:
            stamp = self.get_clock().now().nanoseconds
            self._markers.publish(marker_array(changes, 'mesh', stamp, self.parameters.map_frame))

    def _publish_draco(self, update: MeshUpdate | None) -> None:
        """Send as much as the bandwidth allows; what waits from before goes on while nothing is new."""
        if self._stream is None:
            self._stream = DracoStream(self.parameters.mesh_bandwidth_mbps, 1.0 / self.parameters.mesh_rate)
        if update is not None:
            self._stream.put(update)
        if (mesh := self._stream.take(time.monotonic())) is not None:
            self._draco.publish(mesh)

    def _reset(self, request: Trigger.Request) -> dict[str, Any]:
        self._mesher.reset(self._mesher.map_id)
        return {'message': 'the mesh begins anew'}

    def _save(self, request: SaveMap.Request) -> Callable[[], dict[str, Any]]:
        soup, voxel_size = self._mesher.mesh(), self._mesher.voxel_size

        def write() -> dict[str, Any]:
            mesh = remove_small_components(*weld(*soup), _SPECK)
            if not len(mesh[2]):
                raise SaveError('the mesh is empty but for specks, nothing was written; map something first')
            paths = files_to_write(request, ('mesh.ply', 'mesh.glb'), self.parameters.map_folder)
            if request.method == 'poisson':
                mesh = smooth(*mesh, voxel_size)
            if self.parameters.save_max_triangles:
                mesh = decimate(*mesh, self.parameters.save_max_triangles)
            if not len(mesh[2]):
                raise SaveError('nothing is left of the mesh, nothing was written; raise save_max_triangles')
            with saved_together(paths) as staging:
                for path in paths:
                    write_mesh(staging / path.name, *mesh)
            return {'files': [str(path) for path in paths]}

        return write

    def _get(self, request: GetMesh.Request) -> dict[str, Any]:
        if request.map_id and request.map_id != self._mesher.map_id:
            raise ValueError(f'map {request.map_id} is gone; the present one is {self._mesher.map_id}')
        return {'mesh': mesh_to_message(self._mesher.snapshot(), self.parameters.map_frame)}


def main(arguments: list[str] | None = None) -> int:
    """Run the node alone."""
    return run(Mesher, arguments)


if __name__ == '__main__':
    sys.exit(main())
